"""The address at which this machine, and no other, serves a page."""

import socket

from core.errors import UserError

HOST = "127.0.0.1"
_HIGHEST = 65_535


def check_port(port: int) -> None:
    """Raise UserError for a number that is no port, and for a port that is taken."""
    if not 1 <= port <= _HIGHEST:
        raise UserError(f"--port: got {port}; allowed: 1 to {_HIGHEST}")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise UserError(f"--port: {port} is taken; choose another one")
