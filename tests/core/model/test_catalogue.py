"""What a name stands for, as those who load a model of it have it."""

from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import huggingface_hub
import pytest

from core.errors import ModelError
from core.model import catalogue, denoiser, pretrained
from core.model.catalogue import origin_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to stand in, with models in it, and one that a package registers."""
    monkeypatch.chdir(tmp_path)
    for folder in ("mine", "owner/name"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "owner/sd.safetensors").touch()
    (tmp_path / "owner/weights").touch()
    points = EntryPoints([EntryPoint("colours", "somewhere:load", catalogue.GROUP)])
    monkeypatch.setattr(catalogue, "entry_points", lambda **asked: points.select(**asked))


NAMES = {
    "toyfaces": "built-in",
    "colours": "registered",
    "mine": "folder",
    "owner/name": "folder",  # before the hub's of that name
    "./mine": "folder",
    "owner/sd.safetensors": "file",
    "owner/weights": "file",
    "other/name": "hub",
    "other/name@main": "hub",
    # What is not there:
    "other/name@": "folder",
    "nothing": "folder",
    "./other/name": "folder",
    "~/name": "folder",
    "/name": "folder",
    "a/b/c": "folder",
    "other/sd.safetensors": "file",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_where_a_model_of_a_name_comes_from(name: str, kind: str) -> None:
    assert origin_of(name) == kind


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_what_finds_a_model_agrees(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(hub_id: str, **_: object) -> str:
        asked.append(hub_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(pretrained, "unpacked_before", lambda file: file)
    try:
        pretrained.find_model(name, weights=False)
    except ModelError as error:
        assert "is not there" in str(error) and not Path(name).exists()
    assert bool(asked) == (kind == "hub")


def test_a_package_registers_models_where_they_are_looked_for() -> None:
    assert catalogue.GROUP == denoiser.GROUP
