"""One trial on models that draw latents, read prompts or are transformers; its set knows how the model was used."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core import DirectionSet
from core.execution.streaming import Streamed
from core.metrics.judges import Judges
from core.metrics.networks import Extractor
from core.predictors.vision import open_vision
from orchestrator.bundle.card import card
from orchestrator.edit.session import EditSession
from orchestrator.spec import Sweep, parse
from orchestrator.store.checkpoints import TrialFolder
from orchestrator.sweep import preflight
from orchestrator.trial import model as model_module
from orchestrator.trial.model import TrialModel
from orchestrator.trial.run import run_trial
from tests import families

pytestmark = pytest.mark.usefixtures("hardly_measured")

PROMPTS = {"prompts": ["a face", "a red cat"], "guidance": 2}
CASES = {
    "latent": ("latent", {}),
    "latent in pixels": ("latent", {"space": "pixels"}),
    "sd": ("sd", {**PROMPTS, "form": "pooled"}),
    "sd in pixels": ("sd", {**PROMPTS, "shifted": "conditional", "space": "pixels"}),
    "sd2-zsnr": ("sd2-zsnr", PROMPTS),
    "lcm": ("lcm", {"prompts": ["a face"]}),
    "dit": ("dit", {"classes": [3, 7], "guidance": 2, "tap": "blocks.0"}),
    "flux": ("flux", {"prompts": ["a face"], "size": 32, "form": "tokens"}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in {name for name, _ in CASES.values()}:
        families.saved(name, folder / name)
    return folder


def sweep_of(model: Path, denoiser: dict[str, Any], **sections: Any) -> Sweep:
    base: dict[str, Any] = {"name": "a", "model": str(model), "denoiser": denoiser, "sampler": {"steps": 2}}
    base |= {"search": {}, "budget": {"trials": 1}, "evaluate": {"seeds": 6}}
    return parse(base | {"train": {"iterations": 2, "batch": 4, "micro_batch": 2, "pool": 32}} | sections)


PARAMETERS = {"method": "learned", "directions": 3, "start": "random", "shift_scale": 1.0, "discriminator_weight": 0.1}
FROM_SLOPES = {"latent"}  # by default, that is; it takes most of such a short trial


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DeepSpeed and torch, when they are first imported
@pytest.mark.parametrize("case", CASES)
def test_a_trial_learns_on_every_family_and_its_set_knows_how_its_model_was_used(
    models: Path, tmp_path: Path, case: str
) -> None:
    name, use = CASES[case]
    sweep = sweep_of(models / name, use)
    preflight.check_model(sweep)
    parameters = {**PARAMETERS, "start": "slopes" if case in FROM_SLOPES else "random"}
    *_, told = run_trial(parameters, sweep, TrialFolder(tmp_path / "trial"))
    assert {"identifiability", "fidelity_kid", "globality"} <= told.metrics.keys()
    folder = TrialFolder(tmp_path / "trial").result() / "directions"
    session = EditSession.open(folder)
    assert session.denoiser.use.to_json() == {key: value for key, value in use.items() if value != "both"}
    begun = session.from_seeds([1, 2, 3])
    drawn = session.draw(begun, session.edit({session.directions.names[0]: 1.0}), (0.0, 1.0), batch=2)
    assert drawn.shape == (3, 2, *session.denoiser.image_shape) and torch.isfinite(drawn).all()
    assert torch.allclose(drawn[:, 0], begun.plain, atol=1e-4)
    assert "pipeline" in card(DirectionSet.load(folder))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
def test_weights_in_the_cpus_memory_give_the_same_set(models: Path, tmp_path: Path) -> None:
    tables = []
    for weights in ("device", "cpu"):
        sweep = sweep_of(models / "sd", PROMPTS, gradient={"weights": weights, "lean": False})
        assert isinstance(TrialModel.load(sweep).denoiser.cut, Streamed) == (weights == "cpu")
        list(run_trial(PARAMETERS, sweep, TrialFolder(tmp_path / weights)))
        tables.append(DirectionSet.load(TrialFolder(tmp_path / weights).result() / "directions").table)
    assert torch.allclose(*tables, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
def test_a_trial_looks_through_the_vision_model_that_it_names(
    models: Path, tmp_path: Path, vision_folder: Path
) -> None:
    """Of a latent model it sees the decoded images."""
    sweep = sweep_of(models / "latent", {}, search={"learned.look": str(vision_folder)})
    preflight.check_model(sweep)
    list(run_trial({**PARAMETERS, "learned.look": str(vision_folder)}, sweep, TrialFolder(tmp_path)))
    found = DirectionSet.load(TrialFolder(tmp_path).result() / "directions").provenance
    assert found["settings"]["look"] == str(vision_folder)
    assert found["seen_by"] == open_vision(str(vision_folder), "look").name


def fake_judges() -> Judges:
    """Networks of one number: how bright an image is."""
    bright = Extractor("bright 1234", lambda images: images.flatten(1)[:, :7].float().cpu())
    return Judges(bright, bright, None, bright)


@pytest.mark.slow
def test_what_judged_stands_in_the_metrics_and_in_the_set(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "judges_of", lambda sweep, device="cpu": fake_judges())
    sweep = sweep_of(models / "latent", {}, method="random")
    [told] = run_trial({"method": "random", "directions": 3}, sweep, TrialFolder(tmp_path))
    assert {"fid", "inception_kid", "identity"} <= told.metrics.keys() and "lpips" not in told.metrics
    found = DirectionSet.load(TrialFolder(tmp_path).result() / "directions")
    assert found.provenance["judged_by"] == dict.fromkeys(("features", "inception", "identity"), "bright 1234")


def test_a_metric_whose_network_is_not_named_is_told_before_the_first_trial(models: Path) -> None:
    sweep = sweep_of(models / "latent", {}, method="random", objectives=[{"lpips": "min"}])
    with pytest.raises(ValueError, match="objectives: 'lpips' needs a network: name the file or folder of its weights"):
        preflight.check_model(sweep)


@pytest.mark.parametrize(
    ("name", "use", "sentence"),
    [
        ("latent", {"prompts": ["a"]}, "prompts: model '.*' reads no text"),
        ("latent", {"tap": "mid_blok"}, "tap: got 'mid_blok'; a UNet has mid_block"),
        ("latent", {"size": 33}, r"size: got 33; this model draws squares of 8, 16, 24 ... pixels"),
        ("dit", {"classes": [1000]}, "classes: got 1000; model '.*' has 0 to 999"),
        (
            "dit",
            {"tap": "blocks.3"},
            r"tap: got 'blocks.3'; a DiTTransformer2DModel of this size has blocks.0 to blocks.2",
        ),
    ],
)
def test_a_use_that_a_model_does_not_have_gets_one_sentence(
    models: Path, name: str, use: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrialModel.load(sweep_of(models / name, use))
