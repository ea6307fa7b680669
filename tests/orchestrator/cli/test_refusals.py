"""What can be refused without a model is refused at once: nothing heavy has been imported by then."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from orchestrator.bundle.selection import check, matching
from orchestrator.edit.request import check_gallery
from orchestrator.search.ranking import rows
from orchestrator.spec import parse
from orchestrator.sweep import refusals
from tests.orchestrator.conftest import Command
from tests.orchestrator.fabricated import fabricated

HEAVY = ("torch", "ray", "mlflow", "deepspeed", "diffusers", "transformers", "gradio")
SWEEP = "name: a\nmodel: toyfaces\nmethod: pca\n"

CASES = [
    ("sweep folder", "folder: is a folder, and no sweep file; allowed: a YAML file, and it holds none"),
    ("sweep a.yaml --set model=./nowhere", "model './nowhere' is not there: give a built-in name (toyfaces, "),
    ("sweep a.yaml --set model=digits", "model 'digits' is not part of this version: 'mnist' took its place"),
    ("sweep a.yaml --set predictor=./nowhere", "predictor: './nowhere' is not there; allowed: a folder here, or a hub"),
    ("sweep a.yaml --set evaluate.lpips=x", "evaluate.lpips: 'x' is not there; allowed: a safetensors file"),
    ("sweep a.yaml --set resources.cpus_per_worker=4000", "resources: a trial asks for 4000 CPU; this machine has "),
    ("sweep a.yaml --address 127.0.0.1:9", "--address: no Ray answers at 127.0.0.1:9 (Connection refused)"),
    ("sweep a.yaml --address 127.0.0.1:70000", "--address: no Ray answers at 127.0.0.1:70000 ("),
    ("plan a.yaml --probe --set model=./nowhere", "model './nowhere' is not there: give a built-in name (toyfaces, "),
    ("sweep made.yaml", "sweep 'made' has already been started with other settings; changed since: "),
    ("find toyfaces --to folder", "--to: folder exists; directions are written into a new folder"),
    ("find toyfaces --to new --method pcs", "--method: got 'pcs'; allowed: learned, guided, pca, "),
    (
        "find toyfaces --to new --method pca --attributes smile",
        "--attributes: method pca finds directions without ",
    ),
    ("new toyfaces --attributes smile --directions 4", "--directions: method guided finds one for each attribute; "),
    ("report nothing", "no sweep.json of a sweep 'nothing' in runs; sweeps there: made"),
    ("export nothing --to out", "no sweep.json of a sweep 'nothing' in runs; sweeps there: made"),
    ("export made --to folder", "folder exists; an export is written into a new folder"),
    ("export made --to out", "sweep 'made' has no champion yet; run it to its end, or name a trial with --run"),
    ("export made --to out --run zzz", "--run: sweep 'made' has no run or trial 'zzz'; its trials: "),
    ("export made --to out --top 9", "--top: got 9; sweep 'made' has 3 completed trials"),
    ("gallery set set set --to g.html", "a gallery shows one set, or two side by side; got 3"),
    ("gallery set --to a.yaml", "a.yaml exists; a gallery is written into a new file"),
    ("gallery nowhere --to g.html", "nowhere is not a direction set: directions.json is missing"),
    ("edit set --to a.yaml", "--to: a.yaml exists; name one that does not"),
    ("edit a.yaml --to x.png", "a.yaml is not a direction set: directions.json is missing"),
    ("edit set --to x.jpg", "--to: x.jpg is of no kind that is written; allowed: a new folder, .png, .gif or .webp"),
    ("explore nowhere", "nowhere is not a direction set: directions.json is missing"),
    ("explore set --port 0", "--port: got 0; allowed: 1 to 65535"),
    ("ui --port 70000", "--port: got 70000; allowed: 1 to 65535"),
    ("name nowhere 3=smile", "nowhere is not a direction set: directions.json is missing"),
    ("name set --words 'a|b'", "--words: for which CLIP model? name it with --predictor"),
    ("name set smile", "names: got 'smile'; allowed: OLD=NEW, as in 3=smile or direction_3=smile"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an empty folder, what looks like a direction set, two sweep files, and a sweep of three trials."""
    for name in ("folder", "set"):
        (tmp_path / name).mkdir()
    (tmp_path / "set" / "directions.json").touch()
    (tmp_path / "a.yaml").write_text(SWEEP)
    (tmp_path / "made.yaml").write_text(SWEEP.replace("name: a", "name: made"))
    fabricated(tmp_path / "runs", trials=3)
    return tmp_path


def test_nothing_heavy_is_imported_for_what_needs_no_model(place: Path) -> None:
    code = f"""
import contextlib, io, json, shlex, sys
from orchestrator.cli.main import main
told = []
for line in {[line for line, _ in CASES]!r}:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(shlex.split(line))
    told.append((code, said.getvalue(), [name for name in {HEAVY!r} if name in sys.modules]))
print(json.dumps(told))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=place, check=True)
    for (line, sentence), (code, said, heavy) in zip(CASES, json.loads(done.stdout), strict=True):
        assert (code, heavy) == (2, []), line
        assert said.startswith(sentence) and len(said.strip().splitlines()) == 1, line
    assert sorted(each.name for each in place.iterdir()) == ["a.yaml", "folder", "made.yaml", "runs", "set"]
    assert [each.name for each in (place / "runs").iterdir()] == ["made"]


def test_a_gpu_that_this_machine_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    (tmp_path / "a.yaml").write_text(SWEEP)
    monkeypatch.setattr(refusals, "_gpus", lambda: 1)
    done = command("sweep", "a.yaml", "--set", "resources.gpus_per_trial=2")
    assert done.returncode == 2 and done.stderr == (
        f"resources: a trial asks for 2 CPU and 2 GPU; this machine has {refusals.os.cpu_count()} CPU and 1 GPU: "
        "change resources, or name a Ray cluster with --address\n"
    )
    sweep = parse({"name": "a", "model": "toyfaces", "method": "pca", "resources": {"gpus_per_trial": 2}})
    with socket.create_server(("127.0.0.1", 0)) as server:  # the machines of a cluster are asked instead
        refusals.refuse_at_once(sweep, tmp_path, f"127.0.0.1:{server.getsockname()[1]}", False)
    refusals.refuse_at_once(sweep, tmp_path, "auto", False)


def test_gpus_are_counted_as_ray_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Manager

    monkeypatch.setattr(Manager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    monkeypatch.setattr("ray._private.accelerators.get_accelerator_manager_for_resource", lambda _: Manager)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert refusals._gpus() == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert refusals._gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refusals._gpus() == 0


def test_a_complete_sweep_is_shown_without_its_files_and_gpus(tmp_path: Path) -> None:
    given = {"name": "a", "model": "./gone", "method": "pca", "resources": {"gpus_per_trial": 1}}
    sweep = parse(given)
    folder = refusals.SweepFolder(tmp_path, "a")
    folder.create(sweep, "weights")
    with pytest.raises(UserError, match="model './gone' is not there"):
        refusals.refuse_at_once(sweep, tmp_path, None, False)
    folder.result.write_text("{}")
    refusals.refuse_at_once(sweep, tmp_path, None, False)


def test_an_id_may_be_shortened_to_what_only_one_begins_with() -> None:
    ids = ["ab12", "ab34", "cd56", "cd56ef"]
    assert [matching(text, ids) for text in ("ab1", "ab34", "cd56", "cd56e", "x", "")] == [
        "ab12",
        "ab34",
        "cd56",
        "cd56ef",
        None,
        None,
    ]
    with pytest.raises(UserError) as caught:
        matching("ab", ids)
    assert str(caught.value) == "--run: 2 ids begin with 'ab': ab12, ab34; give more of one"


def test_the_beginning_of_a_trials_id_is_taken_by_an_export(place: Path) -> None:
    folder = refusals.SweepFolder(place / "runs", "made")
    known = [row.trial_id for row in rows(folder, folder.sweep())]
    check(folder, place / "out", known[0][:6])
    check(folder, place / "out", "fedc")  # may be of a run in MLflow


def test_three_sets_are_refused_before_one_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^a gallery shows one set, or two side by side; got 3$"):
        check_gallery([tmp_path] * 3, tmp_path / "g.html")
