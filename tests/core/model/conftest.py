"""Small models of a few families, saved as folders."""

import json
import shutil
from pathlib import Path

import pytest

from core.model.denoiser import Denoiser
from tests import families

PROMPTED = {"prompts": ["a face"]}
OPEN = [Denoiser.from_pretrained, Denoiser.without_weights]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("latent", "sd", "dit"):
        families.saved(name, folder / name)
    return folder


@pytest.fixture
def sd(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "sd", tmp_path / "sd"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
