"""What the ui verb refuses."""

import socket
from pathlib import Path

import pytest
from rich.console import Console

from core.errors import UserError
from orchestrator.ui import serve


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: {port} is taken; choose another one"):
            serve(tmp_path, port, Console())
