"""Names by hand and by predictor end up in every file of a bundle, and what is wrong changes none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core import Denoiser, DirectionSet, Schedule
from core.errors import DirectionSetError, UserError
from core.execution.streaming import Streamed
from core.methods import random
from core.metrics import draw_traversals
from core.metrics.calibration import with_dials
from core.predictors import classifier
from core.predictors.attributes import Attributes
from orchestrator.bundle.files import bundle_of, write_bundle
from orchestrator.cli import main as cli
from orchestrator.edit.naming import gallery, name, rename
from orchestrator.edit.request import parse_names
from orchestrator.edit.session import EditSession


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A bundle of two directions."""
    denoiser = Denoiser.from_pretrained(tiny_model)
    schedule = Schedule.ddim(denoiser, 2)
    found = random.find(denoiser, schedule, random.Settings(2, 20.0))
    calibrated = with_dials(denoiser, schedule, found, strength=0.05)
    (tmp_path / "set").mkdir()
    write_bundle(bundle_of(calibrated, "a set"), tmp_path / "set")
    return tmp_path / "set"


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_names_by_hand_are_in_every_file(folder: Path) -> None:
    before = DirectionSet.load(folder)
    found = name(folder, {0: "smile", "direction_1": "turn <left>"})
    read = DirectionSet.load(folder)
    assert read.names == found.names == ("smile", "turn <left>")
    assert [dial.named_by for dial in read.dials] == ["hand", "hand"]
    assert torch.equal(read.table, before.table) and torch.equal(read.sigma, before.sigma)
    page = (folder / "gallery.html").read_text()
    assert "smile" in page and "turn &lt;left&gt;" in page and "turn <left>" not in page
    assert "`smile`" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_names_only_needs_no_model_and_leaves_no_old_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = DirectionSet.load(folder)
    origin = {**found.provenance, "model": "/nowhere"}
    (folder / "directions.json").unlink()
    (folder / "directions.safetensors").unlink()
    replace(found, provenance=origin).write(folder)
    with pytest.raises(UserError, match="nowhere"):
        name(folder, {0: "smile"})
    assert DirectionSet.load(folder).names[0] == "direction_0"
    assert cli.main(["name", str(folder), "0=smile", "--names-only"]) == 0
    assert DirectionSet.load(folder).names[0] == "smile"
    assert capsys.readouterr().err == (
        "Removed, as they have the old names: gallery.html, traversal.png; `orchestrate name` without --names-only "
        "draws them anew\n"
    )
    described = (folder / "README.md").read_text()
    assert "`smile`" in described and "gallery" not in described and "traversal.png" not in described
    assert not any(b"direction_0" in content for content in files(folder).values())
    assert not {"gallery.html", "traversal.png"} & files(folder).keys()
    assert rename(folder, {0: "grin"})[1] == []


@pytest.mark.slow
def test_a_predictor_names_what_has_no_name_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = DirectionSet.load(folder).table

    def seen(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double() @ torch.linspace(-1, 1, images[0].numel(), dtype=torch.float64)[:, None] * 1e9

    monkeypatch.setattr(classifier, "load", lambda *_: Attributes(("smile",), seen))
    monkeypatch.setattr(classifier, "is_clip", lambda _: True)
    name(folder, {1: "mine"})
    read = name(folder, {}, predictor="some/clip")
    assert read.names[1] == "mine" and read.dials[1].named_by == "hand"
    assert set(read.dials[0].effects) == {"smile"} and read.dials[0].effects["smile"] >= 0
    again = DirectionSet.load(folder)
    assert torch.equal(again.table.abs(), table.abs()) and again.dials == read.dials


@pytest.mark.slow
def test_what_is_wrong_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    for wrong, sentence in (
        ({"smyle": "a"}, "no direction named 'smyle'"),
        ({5: "a"}, "direction 5 is outside the set: it has 0 to 1"),
        ({0: "direction_1"}, "each needs one of its own"),
        ({0: "a\nb"}, "control characters"),
    ):
        with pytest.raises(DirectionSetError, match=sentence):
            name(folder, wrong)
    with pytest.raises(UserError, match="--words: for which CLIP model"):
        name(folder, {}, words="smile")
    assert cli.main(["name", str(folder), "--predictor", "a/b", "--names-only"]) == 2
    refused = "--names-only: names from a predictor need the model; give one of the two\n"
    assert capsys.readouterr().err == refused and files(folder) == before


@pytest.mark.slow
def test_what_does_not_fit_is_drawn_half_as_many_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[int] = []
    draw: Any = draw_traversals

    def tight(*given: Any) -> Any:
        tried.append(given[-1].batch)
        if given[-1].batch > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return draw(*given)

    monkeypatch.setattr("orchestrator.edit.naming.draw_traversals", tight)
    most, before = 0, files(folder)
    assert cli.main(["name", str(folder), "0=smile"]) == 2
    told = "memory ran out; these take less of it: --weights cpu, --precision bf16\n"
    images = 6 * 2 * 10
    begun = f"Loading the model of {folder} ...\nDrawing {folder} (2 directions, {images} images) ...\n"
    assert capsys.readouterr().err == begun + told and tried == [64, 32, 16, 8, 4, 2, 1] and files(folder) == before
    most = 16
    assert cli.main(["name", str(folder), "0=smile", "--weights", "cpu", "--precision", "bf16"]) == 0
    assert tried[7:] == [64, 32, 16] and DirectionSet.load(folder).names[0] == "smile"


@pytest.mark.slow
def test_the_model_is_run_as_it_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[torch.dtype, bool]] = []

    def kept(session: EditSession, *_: Any) -> Any:
        opened.append((session.denoiser.dtype, isinstance(session.denoiser.cut, Streamed)))
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.edit.naming._set_with_images", kept)
    for given in ([], ["--precision", "bf16", "--weights", "cpu"]):
        assert cli.main(["name", str(folder), "0=smile", *given]) == 130
    assert opened == [(torch.float32, False), (torch.bfloat16, True)]


@pytest.mark.parametrize("text", ["3", "=smile", "3=", "smile"])
def test_names_are_pairs(text: str) -> None:
    with pytest.raises(UserError, match="names: got '.*'; allowed: OLD=NEW, as in 3=smile or direction_3=smile"):
        parse_names([text])
    assert parse_names(["3=smile", "yaw = turn left"]) == {3: "smile", "yaw": "turn left"}


@pytest.mark.slow
def test_galleries_of_one_and_of_two(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    gallery([folder, folder], tmp_path / "two.html", say=said.append)
    assert said == 2 * [f"Loading the model of {folder} ...", f"Drawing {folder} (2 directions, 120 images) ..."]
    assert (tmp_path / "two.html").read_text().count("direction_1") > (folder / "gallery.html").read_text().count(
        "direction_1"
    )
    with pytest.raises(UserError, match="two.html exists; a gallery is written into a new file"):
        gallery([folder], tmp_path / "two.html")
    with pytest.raises(UserError, match="one set, or two"):
        gallery([folder] * 3, tmp_path / "three.html")
    assert not (tmp_path / "three.html").exists()
