"""The explore page without a browser: what it shows, what it keeps, and what it refuses in one sentence."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.servers import free_port
from orchestrator.cli import main as cli
from orchestrator.edit.explore_state import ExploreState, difference, sliders_of
from orchestrator.edit.request import ModelOptions
from orchestrator.edit.session import Edit, EditSession
from orchestrator.edit.settings import read_settings
from tests.orchestrator.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tiny_model, tmp_path_factory.mktemp("bundles") / "tiny set")


@pytest.fixture
def state(bundle: Path, tmp_path: Path) -> ExploreState:
    return ExploreState(EditSession.open(bundle, ModelOptions(device="cpu")), tmp_path / "drawn")


def pixels(picture: Path) -> Any:
    with Image.open(picture) as opened:
        return np.asarray(opened).astype(int)


@pytest.mark.slow
def test_what_is_shown_can_be_taken_away_and_made_again(state: ExploreState, bundle: Path, tmp_path: Path) -> None:
    shown = state.show(7, Edit({"yaw": 1.5, "smile": 0.0}, "asymmetric"))
    assert shown.edited.name == "seed_7__yaw+1.5.png" and shown.notes == []
    assert np.abs(pixels(shown.plain) - pixels(shown.edited)).max() > 5
    settings = read_settings(shown.settings)
    assert (settings.seeds, settings.directions, settings.injection) == ((7,), {"yaw": 1.5}, "asymmetric")
    again = ["edit", str(bundle), "--settings", str(shown.settings), "--to", str(tmp_path / "again.png")]
    assert cli.main(again) == 0
    assert np.abs(pixels(tmp_path / "again.png") - pixels(shown.edited)).max() <= 1


@pytest.mark.slow
def test_a_sample_is_begun_once_and_an_image_inverted_once(
    state: ExploreState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (16, 8), "red").save(tmp_path / "me.png")
    first = state.show(tmp_path / "me.png", Edit({"yaw": 1.0}))
    assert first.notes[0].startswith("me.png is 16 x 8 pixels; the model draws 8 x 8: cropped around its centre")
    assert first.notes[1].startswith("me.png is redrawn, before any edit, with a mean error of ") and json.loads(
        first.settings.read_text()
    )["images"] == ["me.png"]
    monkeypatch.setattr("orchestrator.edit.session.invert", lambda *_: pytest.fail("it was inverted already"))
    second = state.show(tmp_path / "me.png", Edit({"yaw": 2.0}))
    assert second.notes == first.notes and second.edited.name == "me__yaw+2.png"
    assert sorted(path.name for path in state.folder.iterdir()) == [
        "me.png",
        "me__yaw+2.png",
        "of both",
        "settings.json",
    ]


@pytest.mark.slow
def test_an_own_image_of_any_name_keeps_its_picture(state: ExploreState, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "difference.png")
    shown = state.show(tmp_path / "difference.png", Edit({"yaw": 1.0}))
    assert len({shown.plain, shown.edited, shown.difference, shown.settings}) == 4


def test_the_difference_is_brightest_where_most_changes() -> None:
    plain, edited = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    edited[:, 1, 2], edited[:, 3, 3] = 0.5, 0.1
    light = np.asarray(difference(plain, edited)).sum(axis=2)
    assert np.unravel_index(light.argmax(), light.shape) == (1, 2) and light[3, 3] > light[0, 0]
    assert np.asarray(difference(plain, plain + 1e-4)).max() == np.asarray(difference(plain, plain)).max() < 10


@pytest.mark.slow
def test_the_directions_that_do_one_thing_come_first(bundle: Path, tiny_model: Path, tmp_path: Path) -> None:
    first, folded = sliders_of(EditSession.open(bundle, ModelOptions(device="cpu")))
    assert [dial.name for dial in first] == ["yaw", "hair colour", "smile", "a=b"] and folded == []
    assert (first[0].low, first[0].high, first[0].about) == (-1.5, 2.5, "score 0.90")
    many = tiny_bundle(tiny_model, tmp_path / "many", names=[f"direction_{k}" for k in range(11)], dials=False)
    first, folded = sliders_of(EditSession.open(many, ModelOptions(device="cpu")))
    assert [dial.name for dial in first] == [f"direction_{k}" for k in range(8)] and len(folded) == 3
    assert (first[0].low, first[0].high, first[0].about) == (-2.0, 2.0, "")


@pytest.mark.slow
def test_a_mistake_in_the_page_is_one_escaped_sentence(state: ExploreState, tmp_path: Path) -> None:
    from orchestrator.edit.explore import _drawn

    names = ["yaw"]
    (tmp_path / "<b>.png").write_text("hello")
    high, low = state.session.schedule.timesteps[0], state.session.schedule.timesteps[-1]
    for given, message in (
        ((None, None, "symmetric", high, low, 0.0), "the seed is None; allowed: an integer of 0 or more"),
        ((-1, None, "symmetric", high, low, 0.0), "the seed is -1; allowed: an integer of 0 or more"),
        ((0, None, "symmetric", low, high, 0.0), f"window [{low}, {high}] holds none of the chain&#x27;s timesteps ["),
        ((0, None, "sideways", high, low, 1.0), "injection: got &#x27;sideways&#x27;; allowed: symmetric, asymmetric"),
        (
            (0, str(tmp_path / "<b>.png"), "symmetric", high, low, 1.0),
            ">images: &lt;b&gt;.png cannot be read as a picture (",
        ),
    ):
        *_, said = _drawn(state, names, *given)
        assert said.startswith('<p class="problem" role="alert">') and message in said and "<b>" not in said
    *files, said = _drawn(state, names, 0, None, "symmetric", high, low, 2.0)
    assert all(Path(file).is_file() for file in files) and said == '<div role="status"></div>'


@pytest.mark.slow
def test_where_memory_runs_out_the_options_that_help_are_told(
    state: ExploreState, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the page, and in the shell where the model itself does not fit."""
    from orchestrator.edit.explore import _drawn

    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    told = "memory ran out; these take less of it: --weights cpu, --precision bf16"
    monkeypatch.setattr("orchestrator.edit.session.sample", no_memory)
    high, low = state.session.schedule.timesteps[0], state.session.schedule.timesteps[-1]
    assert _drawn(state, ["yaw"], 0, None, "symmetric", high, low, 1.0)[-1] == (
        f'<p class="problem" role="alert">{told}</p>'
    )
    monkeypatch.setattr("core.model.denoiser.Denoiser.from_pretrained", no_memory)
    assert cli.main(["explore", str(bundle), "--port", str(free_port()), "--no-browser"]) == 2
    assert capsys.readouterr().err == f"{told}\n"


@pytest.mark.slow
def test_the_model_is_run_as_it_is_asked_for(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ModelOptions] = []

    def stop(_: Path, options: ModelOptions) -> None:
        opened.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(EditSession, "open", stop)
    given = ["--precision", "bf16", "--weights", "cpu", "--steps", "5"]
    assert cli.main(["explore", str(bundle), "--port", str(free_port()), *given]) == 130
    assert opened == [ModelOptions(steps=5, precision="bf16", weights="cpu")]


def test_without_gradio_the_command_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    monkeypatch.delitem(sys.modules, "orchestrator.edit.explore", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["explore", str(bundle)]) == 2
    assert capsys.readouterr().err == "the page needs gradio: pip install 'h-space-orchestrator[explore]'\n"


@pytest.mark.slow
def test_a_port_that_is_taken_or_none(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["explore", str(bundle), "--port", str(port), "--no-browser"]) == 2
    assert capsys.readouterr().err == f"--port: {port} is taken; choose another one\n"
    assert cli.main(["explore", str(bundle), "--port", "99999"]) == 2
    assert capsys.readouterr().err == "--port: got 99999; allowed: 1 to 65535\n"


def test_a_bundle_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explore", str(tmp_path / "none"), "--port", str(free_port())]) == 2
    assert "none is not a direction set: directions.json is missing" in capsys.readouterr().err


@pytest.fixture
def served(bundle: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "explore", str(bundle)]
    # A proxy that is not there: the page is asked for past it.
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:9", "GRADIO_SHARE": "true"}
    with subprocess.Popen(
        [*command, "--port", str(port), "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=_minds_ctrl_c,
    ) as process:
        yield process, port
        process.kill()


def _minds_ctrl_c() -> None:
    """What a shell starts in the background has SIGINT ignored, and would hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_this_machine_alone_and_ends_when_asked_to(
    served: tuple[subprocess.Popen[str], int], tmp_path: Path, ending: signal.Signals
) -> None:
    process, port = served
    assert process.stdout is not None
    assert process.stdout.readline() == f"Explore: http://127.0.0.1:{port}   (Ctrl-C ends it)\n"
    assert list(tmp_path.glob("explore-*"))
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://127.0.0.1:{port}/").status_code == 200
    sockets = [line.split() for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]]
    listening = {address for _, address, _, state, *_ in sockets if state == "0A"}
    assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    began = time.monotonic()
    process.send_signal(ending)
    assert process.wait(timeout=30) == 0 and time.monotonic() - began < 15
    assert process.stdout.read() == "" and not list(tmp_path.glob("explore-*"))
