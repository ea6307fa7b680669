"""Bundles: whole, described, verified on read."""

import ast
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
import torch
import yaml
from PIL import Image

from core import Denoiser, DirectionSet, Schedule
from core.errors import UserError
from core.methods import random
from core.metrics import evaluate
from core.samples.draw import Sampling
from orchestrator.bundle import export as module
from orchestrator.bundle.card import card
from orchestrator.bundle.export import export
from orchestrator.bundle.files import bundle_of, read_bundle, write_bundle
from orchestrator.edit.session import EditSession
from orchestrator.search.ledger import Ledger
from orchestrator.search.ranking import rows
from orchestrator.spec import Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.store.study import create_study
from orchestrator.sweep.champion import choose_champion
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial import model as model_module
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.bundles import dialled, keep_set
from tests.orchestrator.conftest import RecordedOutbox, report_at


@pytest.fixture
def directions() -> DirectionSet:
    table = torch.nn.functional.normalize(torch.ones(2, 1, 4, 1, 1), dim=2)
    origin = {"model": "toyfaces", "method": "learned", "trial": "t1", "sweep": "faces", "weight_digest": "ab" * 32}
    return DirectionSet(table, torch.ones(2, 1), (500, 0), metrics={"globality": 0.5}, provenance=origin)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> SweepFolder:
    """A sweep's folder with one trial that is on its way and has three checkpoints."""
    given = {"name": "faces", "model": str(tiny_model), "sampler": {"steps": 2}}
    sweep = parse({**given, "search": {"directions": {"choice": [2, 3]}}})
    folder, ledger = started_sweep(tmp_path / "runs", sweep)
    [trial_id], trial_model = ledger.running(), model_module.TrialModel.load(sweep)
    found = random.find(trial_model.denoiser, trial_model.schedule, random.Settings(2))
    for number in (9, 10, 11):
        named = replace(found, names=("a", f"of {number}"))
        keep_set(folder, trial_id, number, named if number < 11 else None)
    return folder


def started_sweep(root: Path, sweep: Sweep) -> tuple[SweepFolder, Ledger]:
    """A sweep whose first trial has begun."""
    folder = SweepFolder(root, sweep.name)
    folder.create(sweep, "weights")
    create_study(sweep, folder.study_file)
    folder.add(study=folder.study_file.name, experiment_id="1", parent_run="parent")
    ledger = Ledger(sweep, folder.study_file, "weights")
    assert ledger.next_attempt() is not None
    return folder, ledger


def name_of(folder: SweepFolder) -> str:
    [row] = rows(folder, folder.sweep())
    return row.trial_id


FILES = {
    "README.md",
    "apply_directions.py",
    "directions.json",
    "directions.safetensors",
    "directions.schema.json",
    "gallery.html",
    "traversal.png",
}


def test_a_bundle_holds_all_that_is_needed_to_look_and_to_use(directions: DirectionSet, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_bundle(bundle_of(dialled(directions), "a set"), tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    with Image.open(tmp_path / "out" / "traversal.png") as picture:
        assert picture.width > 5 * 96  # four scales, and the unshifted image among them
    again = read_bundle(tmp_path / "out")
    assert again.directions.dials == dialled(directions).directions.dials
    assert b"a set" in again.files["gallery.html"]


def test_what_describes_a_set_keeps_the_published_schema(directions: DirectionSet, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_bundle(bundle_of(dialled(directions), "a set"), tmp_path / "out")
    schema = json.loads((tmp_path / "out" / "directions.schema.json").read_text())
    described = json.loads((tmp_path / "out" / "directions.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert not list(validator.iter_errors(described))
    for broken in ({"version": 1}, {"names": []}, {"dials": [{"low": 0.0}]}):
        assert list(validator.iter_errors({**described, **broken})), broken


def test_a_hubs_folder_has_front_matter_and_rules_for_large_files(directions: DirectionSet, tmp_path: Path) -> None:
    origin = {**directions.provenance, "model": "google/ddpm-celebahq-256"}
    (tmp_path / "out").mkdir()
    write_bundle(bundle_of(dialled(replace(directions, provenance=origin)), "a set"), tmp_path / "out", style="hub")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES | {".gitattributes"}
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "google/ddpm-celebahq-256"
    assert yaml.safe_load(front)["library_name"] == "diffusers" and text.startswith("\n# 2 directions")
    assert "*.safetensors filter=lfs" in (tmp_path / "out" / ".gitattributes").read_text()


def test_a_bundle_that_lost_its_gallery_is_told(directions: DirectionSet, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_bundle(bundle_of(dialled(directions), "a set"), tmp_path / "out")
    (tmp_path / "out" / "gallery.html").unlink()
    (tmp_path / "out" / "gallery.html").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="out is not a whole bundle: gallery.html cannot be read"):
        read_bundle(tmp_path / "out")


def test_a_card_says_what_each_direction_does_best_first(directions: DirectionSet) -> None:
    text = card(dialled(directions).directions)
    assert "# 2 directions in the h-space of `toyfaces`" in text
    assert "| globality | 0.5 | - | more |" in text and "| identifiability" not in text
    first, second = (line for line in text.splitlines() if line.startswith("| `direction"))
    assert first == "| `direction_1` | 0.81 | 0.90 | 0.90 | -3 to +3 | - |"
    assert second == "| `direction_0` | 0.40 | 0.50 | 0.80 | -1 to +2 | `smile` +0.9, `age` -0.3 |"
    assert "num_inference_steps=2" in text and "Nobody has measured" not in text
    assert "Nobody has measured their scales" in card(directions)


def test_a_card_the_gallery_and_an_edit_name_the_same_range(directions: DirectionSet, tiny_model: Path) -> None:
    measured = dialled(directions)
    dials = tuple(replace(dial, low=-1.987, high=0.4171) for dial in measured.directions.dials)
    shown = replace(measured, directions=replace(measured.directions, dials=dials))
    assert "| -1.98 to +0.41 |" in card(shown.directions)
    assert "Faithful from <b>−1.98</b> to <b>+0.41</b>" in bundle_of(shown, "a set").files["gallery.html"].decode()
    model = Denoiser.from_pretrained(str(tiny_model))
    session = EditSession(shown.directions, model, Schedule.ddim(model, 2))
    assert session.range_warnings({"direction_0": -1.98}) == []
    [warning] = session.range_warnings({"direction_0": -1.985})
    assert warning.startswith("direction_0 -1.985 is outside -1.98 to +0.41, ")


def code_of(directions: DirectionSet, **told: Any) -> str:
    """The first block of the card of a set that comes from elsewhere."""
    text = card(replace(directions, provenance={**directions.provenance, **told}))
    return text.split("```python\n")[1].split("```")[0]


FLUX = {"network": "FluxTransformer2DModel", "sampler": "FlowMatchEulerDiscreteScheduler", "codec": "AutoencoderKL"}
LCM = {"network": "UNet2DConditionModel", "sampler": "LCMScheduler", "codec": "AutoencoderKL"}
SD = {"network": "UNet2DConditionModel", "sampler": "DDIMScheduler", "codec": "AutoencoderKL"}
DIT = {"network": "DiTTransformer2DModel", "sampler": "DDIMScheduler", "codec": "AutoencoderKL"}
PIXART = {"network": "PixArtTransformer2DModel", "sampler": "DDIMScheduler", "codec": "AutoencoderKL"}
FACE = {"prompts": ["a face"]}


@pytest.mark.parametrize(
    ("told", "call"),
    [
        ({"eta": 0.5}, "num_inference_steps=2, eta=0.5"),
        ({**FLUX, "use": FACE, "told": ["guidance"]}, '"a face", guidance_scale=3.5, num_inference_steps=2'),
        ({**FLUX, "use": FACE, "told": []}, '"a face", guidance_scale=1, num_inference_steps=2'),
        ({**FLUX, "use": FACE}, '"a face", guidance_scale=3.5, num_inference_steps=2'),
        ({**FLUX, "use": {"guidance": 2}, "told": ["guidance"]}, '"", guidance_scale=2, num_inference_steps=2'),
        ({**LCM, "told": ["timestep_cond"]}, '"", guidance_scale=8.5, num_inference_steps=2'),
        ({**LCM, "told": ["encoder_hidden_states"]}, '"", guidance_scale=1, num_inference_steps=2'),
        (LCM, '"", guidance_scale=8.5, num_inference_steps=2'),
        ({**SD, "told": ["timestep_cond"]}, '"", guidance_scale=8.5, num_inference_steps=2'),
        ({"eta": "); import os"}, "num_inference_steps=2, eta=0.0"),
        ({**SD, "told": 7, "eta": 0.5}, '"", guidance_scale=1, num_inference_steps=2, eta=0.5'),
        (
            {**SD, "use": {**FACE, "guidance": 5.0, "negative_prompt": 'a "b', "size": 256}},
            '"a face", negative_prompt="a \\"b", guidance_scale=5, height=256, width=256, num_inference_steps=2',
        ),
        (
            {**PIXART, "use": {**FACE, "size": 768}},
            '"a face", guidance_scale=1, height=768, width=768, clean_caption=False, use_resolution_binning=False, '
            "num_inference_steps=2",
        ),
        ({**DIT, "use": {"classes": [3], "guidance": 4}}, "class_labels=[3], guidance_scale=4, num_inference_steps=2"),
    ],
)
def test_the_code_on_a_card_tells_the_pipeline_what_the_model_was_told(
    directions: DirectionSet, told: dict[str, Any], call: str
) -> None:
    """Older sets do not say whether their network is told its guidance; strangers' say anything."""
    assert f"pipeline({call}).images" in code_of(directions, **told)


@pytest.mark.parametrize("told", [{}, {"sampler": "DDIMScheduler"}, SD, LCM, DIT])
def test_the_code_on_a_card_steps_as_the_chain_did(directions: DirectionSet, told: dict[str, Any]) -> None:
    code, kind = code_of(directions, **told), told.get("sampler", "DDIMScheduler")
    config = "config = {name: value for name, value in pipeline.scheduler.config.items() if name in known}"
    config += '\nconfig["_use_default_values"] = []'
    swap = f"pipeline.scheduler = {kind}.from_config(config, clip_sample=False, thresholding=False)"
    assert f"\n{config}\n{swap}\nwith applied(" in code
    assert kind in code.split("pipeline = ")[0]
    assert ".scheduler = " not in code_of(directions, **FLUX)
    assert ".scheduler = " not in code_of(directions, **{**SD, "sampler": 'x"); import os; os.system("'})


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"use": {"size": 64}, "sample_shape": [3, 64, 64]}, "pipeline.unet.register_to_config(sample_size=64)"),
        ({**DIT, "use": {"size": 512}, "sample_shape": [4, 64, 64]}, "pipeline.transformer.register_to_config("),
        ({"codec": "VQModel", "scaling_factor": 1.0}, "pipeline.vqvae.register_to_config(scaling_factor=1.0)"),
        ({"codec": "VQModel", "scaling_factor": "1); import os"}, None),
        ({"codec": "AutoencoderKL", "scaling_factor": 1.0}, None),
        ({"sample_shape": [3, 64, 64]}, None),
        ({"use": {"size": 64}}, None),
        ({"use": {"size": 64}, "sample_shape": [3, 64, "64); import os"]}, None),
        ({**SD, "use": {"size": 64}, "sample_shape": [4, 8, 8]}, None),
    ],
)
def test_where_a_pipeline_takes_no_size_its_network_says_it(
    directions: DirectionSet, told: dict[str, Any], line: str | None
) -> None:
    code = code_of(directions, **told)
    assert line in code if line else "register_to_config" not in code


@pytest.mark.parametrize(
    ("model", "base", "read"),
    [
        ("google/ddpm-celebahq-256", "google/ddpm-celebahq-256", '"google/ddpm-celebahq-256"'),
        ("google/ddpm@main", "google/ddpm", '"google/ddpm", revision="main"'),
        ("toyfaces", None, 'files("core.zoo") / "toyfaces")  # of h-space-orchestrator'),
        ("models/mine", None, '"models/mine")  # a path on the machine of the sweep, as the sweep file has it'),
        ("models/mine@2", None, '"models/mine@2"'),
        ("models/mine.safetensors", None, '"models/mine.safetensors"'),
        ("~nobody-at-all/mine", None, '"~nobody-at-all/mine"'),
        (f"a/{'b' * 5000}", None, f'"a/{"b" * 5000}"'),
    ],
)
def test_a_hub_is_told_of_a_model_of_the_hub_alone(
    directions: DirectionSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    base: str | None,
    read: str,
) -> None:
    """Folders that are here look like the names of others there."""
    for name in ("mine", "mine@2"):
        (tmp_path / "models" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = card(replace(directions, provenance={**directions.provenance, "model": model}), for_hub=True)
    assert yaml.safe_load(text.split("---\n")[1]).get("base_model") == base
    assert f"from_pretrained({read}" in text


@pytest.mark.parametrize("model", ["models/mine", "./models/mine", "~/models/mine", "toyfaces"])
def test_the_model_on_a_card_is_found_from_any_folder(
    directions: DirectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    code = code_of(directions, model=model)
    monkeypatch.chdir("/")
    lines = code.splitlines()
    [opened] = [line for line in lines if ".from_pretrained(" in line]
    named = opened.split("from_pretrained(")[1].split(")  # ")[0]
    names = {"files": files}
    assert ("from importlib.resources import files" in lines) == ("files(" in named)
    assert Path(eval(named, names)).is_dir()


def test_a_card_uses_the_injection_that_was_measured(directions: DirectionSet) -> None:
    asymmetric = replace(directions, provenance={**directions.provenance, "injection": "asymmetric"})
    assert card(asymmetric).count("asymmetric=pipeline.scheduler") == 2
    assert "asymmetric" not in card(directions)
    for block in card(asymmetric).split("```python\n")[1:]:
        compile(block.split("```")[0], "card", "exec")


HOSTILE = ['a"); import os; os.system("x', "a\nb", "`code`", "``` \n# heading", "ü"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_holds_no_more_than_it_says(directions: DirectionSet, name: str) -> None:
    """Names and provenance may come from anyone: the code in it stays two assignments, a call and a block."""
    plain = "".join(letter for letter in name if letter.isprintable())
    told = {key: name for key in ("model", "method", "trial", "sweep", "weight_digest")}
    text = card(replace(directions, names=(plain, "b"), provenance={**directions.provenance, **told}))
    alone, packaged = (block.split("\n```")[0] for block in text.split("```python\n")[1:])
    *_, block = ast.parse(alone).body
    assert isinstance(block, ast.With) and isinstance(block.items[0].context_expr, ast.Call)
    assert ast.literal_eval(block.items[0].context_expr.args[2]) == plain
    assert [type(part) for part in ast.parse(packaged).body] == [ast.ImportFrom, ast.Assign, ast.With]
    first, _, second = text.splitlines()[:3]
    assert first.startswith("# 2 directions in the h-space of `") and first.count("`") == 2
    assert second.startswith("Found by the method `") and second.count("`") == 6
    assert text.count("```") == 6, "a block ends where the card ends it"


@pytest.mark.slow
def test_the_last_set_of_a_trial_is_exported(folder: SweepFolder, tmp_path: Path) -> None:
    """Its newest checkpoint holds none: it was saved on the way."""
    trial_id = name_of(folder)
    assert export(folder, tmp_path / "out", run=trial_id) == [tmp_path / "out"]
    loaded = DirectionSet.load(tmp_path / "out")
    assert loaded.names == ("a", "of 10")
    assert (loaded.provenance["sweep"], loaded.provenance["trial"]) == ("faces", trial_id)
    assert len(loaded.dials) == 2 and (tmp_path / "out" / "gallery.html").is_file()


@pytest.mark.slow
def test_what_cannot_be_exported(folder: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="sweep 'faces' has no champion yet; run it to its end, or name a trial with --run"
    ):
        export(folder, tmp_path / "out")
    with pytest.raises(UserError, match="--top: got 1; sweep 'faces' has 0 completed trials"):
        export(folder, tmp_path / "out", top=1)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists; an export is written into a new folder"):
        export(folder, tmp_path / "there", run=name_of(folder))
    assert not (tmp_path / "out").exists()


class NoRuns:
    """A tracking store that knows nothing of the sweep."""

    shown = "nowhere"

    def children(self, *_: str) -> list[Any]:
        return []

    def find(self, *_: str) -> None:
        return None


@pytest.mark.slow
@pytest.mark.parametrize("run", ["..", "../../runs/faces/trials/x", "/etc", "", "other"])
def test_a_run_is_one_of_the_sweeps_and_no_path(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr(module, "_tracking", lambda *_: NoRuns())
    with pytest.raises(UserError) as caught:
        export(folder, tmp_path / "out", run=run)
    known = f"--run: sweep 'faces' has no run or trial '{run}'; its trials: {name_of(folder)}"
    assert str(caught.value) == known and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_mlflow_run_or_the_beginning_of_its_id_names_its_trial(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, data = SimpleNamespace(run_id="e" * 32), SimpleNamespace(tags={"trial_id": name_of(folder)})
    store = SimpleNamespace(children=lambda *_: [SimpleNamespace(info=info, data=data)])
    monkeypatch.setattr(module, "_tracking", lambda *_: store)
    export(folder, tmp_path / "out", run="e" * 6)
    assert DirectionSet.load(tmp_path / "out").names == ("a", "of 10")
    data.tags["trial_id"] = "../../elsewhere"
    with pytest.raises(UserError, match=f"has no run or trial '{'e' * 32}'"):
        export(folder, tmp_path / "other", run="e" * 32)


@pytest.mark.slow
def test_a_set_that_is_nowhere_any_more(folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_tracking", lambda *_: NoRuns())
    folder.trial(name_of(folder)).remove_all()
    with pytest.raises(UserError, match="of sweep 'faces' has no direction set, on disk or in MLflow"):
        export(folder, tmp_path / "out", run=name_of(folder))


def finished(tiny_model: Path, tmp_path: Path, value: float = 0.5) -> SweepRecord:
    """A sweep with one completed trial, not crowned yet."""
    sweep = parse(
        {
            "name": "a",
            "model": str(tiny_model),
            "method": "random",
            "sampler": {"steps": 2},
            "search": {},
            "objectives": [{"identifiability": "max"}],
            "budget": {"trials": 1},
            "export": {"register": "faces"},
        }
    )
    folder, ledger = started_sweep(tmp_path / "runs", sweep)
    [trial_id], trial_model = ledger.running(), model_module.TrialModel.load(sweep)
    keep_set(folder, trial_id, 400, random.find(trial_model.denoiser, trial_model.schedule, random.Settings(2)))
    ledger.end(trial_id, TrialOutcome.COMPLETED, "", report_at(400, value))
    return SweepRecord(sweep, folder, ledger, cast(Any, RecordedOutbox()))


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_measured")
def test_the_champion_is_measured_with_as_many_samples_at_a_time_as_fit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    measure = cast(Any, evaluate)

    def tight(*given: Any, sampling: Sampling, **more: Any) -> Any:
        tried.append(sampling.batch)
        if sampling.batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(*given, sampling=sampling, **more)

    monkeypatch.setattr(model_module, "evaluate", tight)
    record = finished(tiny_model, tmp_path)
    best = choose_champion(record)
    assert tried == [64, 32, 16] + [16] * 5  # the champion, then the baseline
    assert best is not None and best.trial_id == record.folder.read("result.json")["trial"]
    champion = DirectionSet.load(record.folder.champion)
    assert champion.metrics == record.folder.read("result.json")["champion"]
    assert champion.provenance["trial"] == best.trial_id and champion.provenance["sweep"] == "a"


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_measured")
def test_a_champion_is_told_whole_and_the_same_when_it_is_crowned_again(tiny_model: Path, tmp_path: Path) -> None:
    """As after a kill before the result was written; what a kill left of the champion's folder goes."""
    record = finished(tiny_model, tmp_path)
    told = cast(RecordedOutbox, record.outbox)
    record.folder.champion.mkdir()
    choose_champion(record)
    first = list(told.calls)
    told.calls.clear()
    record.folder.result.unlink()
    choose_champion(record)
    kinds = ["file", "metrics", "inputs", "folder", "image", "folder", "register", "tags", "tags", "end"]
    assert told.calls == first and [call[0] for call in first] == kinds
    [points] = first[1][2]
    assert points["step"] == 0 and {"champion/globality", "random/globality"} <= points.keys()
    assert first[6][:3] == ("register", "faces", "model") and first[9][1:3] == (None, "FINISHED")
    assert record.folder.result.is_file()


@pytest.mark.slow
def test_where_no_trial_is_whole_nobody_is_champion(tmp_path: Path) -> None:
    sweep = parse({"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}})
    folder, ledger = started_sweep(tmp_path / "runs", sweep)
    [trial_id] = ledger.running()
    ledger.end(trial_id, TrialOutcome.FAILED, "crashed")
    told = RecordedOutbox()
    assert choose_champion(SweepRecord(sweep, folder, ledger, cast(Any, told))) is None
    [end] = told.calls
    assert end[:4] == ("end", None, "FAILED", {"outcome": "no trial was completed"})
    assert not folder.result.exists() and not folder.champion.exists()
