"""What a sweep holds where its file says nothing, what follows from what it says, and the sweeps that ship."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.plan.dry_run import what_runs
from orchestrator.search.space import trials
from orchestrator.spec import Fixed, IntRange, SpecError, Sweep, load, parse
from orchestrator.spec.reading import document

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
HEADINGS = ["Purpose", "Command", "Hardware", "Time", "Result"]
BASE = "name: a\nmodel: toyfaces\nsearch: {directions: {choice: [8, 12]}}\n"


def sweep_of(text: str) -> Sweep:
    """The sweep of BASE with the top-level keys of `text` in place of its own."""
    return parse(document(BASE).data | document(text).data)


def test_the_shares_of_a_huge_batch_are_found_at_once() -> None:
    unpaired = "search: {consistency_weight: 0, purity_weight: 0, locality_weight: 0}"
    assert len(sweep_of(f"{{train: {{batch: 2147483640}}, {unpaired}, budget: {{trials: 1}}}}").micro_batches) == 256


def test_an_experiment_of_a_server_may_have_any_name() -> None:
    assert sweep_of("tracking: {uri: 'http://x', experiment: /Users/me/x}").experiment == "/Users/me/x"


def test_numbers_and_empty_sections() -> None:
    sweep = sweep_of(
        "{sampler: {eta: 1}, train: null, deepspeed: {offload_optimizer: null}, "
        "search: {direction_rate: 1e-3, directions: {int: [8, 16], step: 4}}}"
    )
    assert (sweep.sampler.eta, type(sweep.sampler.eta)) == (1.0, float)
    assert sweep.train.iterations == 400
    assert sweep.deepspeed.offload_optimizer == "none"
    assert sweep.search == {"direction_rate": Fixed(0.001), "directions": IntRange(8, 16, step=4)}


def test_defaults() -> None:
    sweep = sweep_of("{}")
    assert sweep.resolved() == {
        "name": "a",
        "model": "toyfaces",
        "predictor": None,
        "method": "learned",
        "seed": 0,
        "sampler": {"steps": 20, "injection": "symmetric", "window": None, "eta": 0.0, "batch": 64},
        "train": {
            "iterations": 400,
            "batch": 16,
            "micro_batch": None,
            "pool": 1024,
            "precision": "fp32",
            "strength_floor": 1 / 6,
        },
        "search": {
            "directions": {"choice": [8, 12]},
            "shift_scale": 0.5,
            "discriminator_weight": 3.0,
            "consistency_weight": 1.0,
            "purity_weight": 30.0,
            "locality_weight": 100.0,
            "parametrisation": "shared",
            "orthonormal": False,
            "start": "slopes",
            "direction_rate": 0.02,
            "reconstructor_rate": 0.001,
            "discriminator_rate": 0.001,
            "learned.look": "pixels",
        },
        "objectives": [{"factor_score": "max"}],
        "scheduler": None,
        "budget": {"trials": 16, "hours": None},
        "evaluate": {
            "every": 400,
            "seeds": 24,
            "strength": 0.5,
            "features": None,
            "inception": None,
            "lpips": None,
            "identity": None,
            "second_predictor": None,
        },
        "denoiser": {
            "tap": None,
            "form": None,
            "prompts": [],
            "negative_prompt": "",
            "classes": [],
            "guidance": None,
            "shifted": "both",
            "size": None,
            "space": "latents",
        },
        "resources": {"gpus_per_trial": 0.0, "cpus_per_worker": 1, "workers": None},
        "deepspeed": {
            "zero": 1,
            "offload_optimizer": "none",
            "offload_param": "none",
            "nvme_path": None,
            "gradient_clipping": None,
            "precision": "fp32",
        },
        "gradient": {"policy": "auto", "memory": "auto", "lean": True, "weights": "device"},
        "recovery": {
            "crashes": 2,
            "out_of_memory": 3,
            "preemptions": None,
            "stalled_minutes": 30.0,
            "checkpoint_every": None,
            "keep_trials": 10,
        },
        "cluster": {
            **dict.fromkeys(["nodes", "gpus_per_node", "cpus_per_node", "memory_per_node", "hours", "root", "setup"]),
            **dict.fromkeys(["image", "partition", "account", "namespace", "volume", "secret", "user", "instance"]),
            "retries": 20,
            "hosts": [],
            "region": "us-west-2",
        },
        "tracking": {"uri": None, "experiment": "a", "system_metrics": True},
        "study": {"uri": None},
        "export": {"register": None},
    }


def test_null_means_what_it_is_derived_from() -> None:
    sweep = sweep_of(
        "{objectives: [{coverage: max}, {fidelity_kid: min}], scheduler: {asha: {grace: 50}}, "
        "resources: {gpus_per_trial: 4}}"
    )
    assert (sweep.evaluate_every, sweep.asha_metric, sweep.experiment) == (50, "coverage", "a")
    assert sweep.objective_names == ["coverage", "fidelity_kid"]
    assert (sweep.asha_mode, sweep_of("{}").asha_mode) == ("max", None)
    plain = sweep_of("{}")
    assert (plain.evaluate_every, plain.asha_metric) == (400, None)


def test_micro_batches_divide_a_workers_share() -> None:
    """And are even where samples are compared in pairs."""
    four = "{resources: {gpus_per_trial: 4}, train: {batch: 24}"
    assert sweep_of(f"{four}}}").micro_batches == (6, 2)
    for weights, sizes in (
        ("consistency_weight: 0, purity_weight: 0, locality_weight: 0", (6, 3, 2, 1)),
        ("consistency_weight: 0, purity_weight: 0", (6, 2)),
        ("consistency_weight: 0", (6, 2)),
        ("purity_weight: 0", (6, 2)),
    ):
        sweep = sweep_of(f"{four}, search: {{directions: {{choice: [8, 12]}}, {weights}}}}}")
        assert sweep.micro_batches == sizes
    for when, sizes in (("{method: learned}", (6, 3, 2, 1)), ("{start: pca}", (6, 2))):
        search = (
            f"start: {{choice: [pca, random]}}, consistency_weight: {{choice: [0], when: {when}}}, "
            "purity_weight: 0, locality_weight: 0"
        )
        assert sweep_of(f"{four}, search: {{{search}}}}}").micro_batches == sizes
    assert sweep_of("{train: {batch: 12, micro_batch: 4}}").micro_batches == (12, 6, 4, 2)


def test_a_sweep_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sweep_of("{}").name = "b"


def test_resolved_is_plain_json_and_a_sweep_file_itself() -> None:
    for path in SWEEPS:
        sweep = load(path)
        again = parse(json.loads(json.dumps(sweep.resolved(), allow_nan=False)))
        assert again.resolved() == sweep.resolved()
        assert again.identity() == sweep.identity()


def test_the_values_that_a_parameter_may_have() -> None:
    """Where its condition does not hold, its default."""
    sweep = sweep_of(
        "{method: {choice: [learned, pca]}, search: {start: {choice: [pca, random]}, "
        "directions: {int: [8, 9], when: {method: pca}}, consistency_weight: {choice: [0], when: {start: pca}}, "
        "discriminator_weight: {float: [0, 1], when: {start: pca}}, seed: {choice: [5, 6]}}}"
    )
    assert (sweep.possible_values("directions", "pca"), sweep.possible_values("directions", "learned")) == (
        range(8, 10),
        (16,),
    )
    assert sweep.possible_values("consistency_weight", "learned") == (0.0, 1.0)
    assert sweep.possible_values("discriminator_weight", "learned") is None
    assert (sweep.possible_values("seed", "pca"), sweep.possible_values("shift_scale", "learned")) == ((5, 6), (0.5,))


def test_one_trial_needs_no_search() -> None:
    assert sweep_of("{search: {}, budget: {trials: 1}}").budget.trials == 1


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_that_ship(path: Path) -> None:
    assert load(path).name == path.stem
    opening = path.read_text().partition("\n\n")[0].splitlines()
    assert all(line.startswith("# ") for line in opening)
    assert [line.split()[1] for line in opening if line[2] != " "] == HEADINGS


def test_sweeps_ship() -> None:
    assert len(SWEEPS) >= 3


@pytest.mark.slow
def test_nothing_heavy_is_imported() -> None:
    heavy = "torch ray optuna mlflow diffusers deepspeed"
    code = f"import sys, orchestrator.spec; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.slow
def test_the_metrics_are_those_of_core() -> None:
    from core.metrics import METRICS as metrics_of_core  # here, for it loads torch
    from orchestrator.spec import METRICS

    assert metrics_of_core == METRICS


@pytest.mark.slow
def test_the_numbers_are_those_of_core() -> None:
    from core.metrics.calibration import STRENGTH as strength_of_core  # here, for they load torch
    from core.metrics.networks.inception import FEATURES
    from orchestrator.spec.tables import INCEPTION_FEATURES, STRENGTH

    assert (strength_of_core, FEATURES) == (STRENGTH, INCEPTION_FEATURES)


def test_sets_are_compared_at_equal_strength_unless_that_is_null() -> None:
    assert sweep_of("{}").evaluate.strength == 0.5
    assert sweep_of("evaluate: {strength: null}").evaluate.strength is None


@pytest.mark.parametrize("named", ["objectives: [{fid: min}]", "scheduler: {asha: {grace: 5, metric: fid}}"])
def test_trials_are_not_compared_by_fid_on_too_few_images(tmp_path: Path, named: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"name: a\nmodel: b\nsearch: {{directions: {{choice: [8, 12]}}}}\n{named}\n")
    with pytest.raises(SpecError) as caught:
        load(path, ["evaluate.seeds=512"])
    assert caught.value.problems == [
        "evaluate.seeds: fid needs more than 2048 images, four for each seed (got 512); "
        "allowed: 513 or more, or inception_kid in place of fid"
    ]
    assert load(path, ["evaluate.seeds=513"]).evaluate.seeds == 513
    path.write_text(path.read_text().replace("fid", "inception_kid"))
    assert load(path).evaluate.seeds == 24
    sweep_of(named)  # one that was begun before is still read


@pytest.mark.parametrize("method", ["pca", "jacobian", "random"])
def test_a_method_that_trains_nothing_needs_no_search(method: str) -> None:
    given = {"name": "a", "model": "toyfaces", "method": method}
    sweep = parse(given)
    assert trials(sweep) == 1 and trials(parse({**given, "budget": {"trials": 4}})) == 1
    assert what_runs(sweep)["budget"] == "1 trial"
    assert parse(sweep.resolved()).identity() == sweep.identity() == parse({**given, "search": {}}).identity()
    assert trials(parse({**given, "method": {"choice": [method, "supervised"]}})) == 2
