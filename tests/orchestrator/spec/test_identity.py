"""Two spellings of one sweep are one sweep; what decides results makes it, or its trials, another."""

import copy
import hashlib
import json
from typing import Any

import pytest
import yaml

from orchestrator.spec import SCHEMA_VERSION, parse, result_keys
from tests.orchestrator.spec.test_sweep import sweep_of

FULL = """
{name: a, model: b, predictor: p, method: {choice: [learned, random]}, seed: 1,
 sampler: {steps: 6, injection: symmetric, window: [900, 100], eta: 0.5, batch: 32},
 train: {iterations: 100, batch: 16, micro_batch: 4, pool: 128, precision: fp32, strength_floor: 0.1},
 search: {directions: {int: [8, 16], step: 4, log: false}, shift_scale: {float: [0.5, 3.0], log: true},
          discriminator_weight: 0.2, parametrisation: {choice: [shared, time], when: {method: learned}},
          seed: 1, consistency_weight: 2, purity_weight: 3, locality_weight: 5, orthonormal: false, start: random,
          direction_rate: 0.1, reconstructor_rate: 0.1, discriminator_rate: 0.1, learned.look: pixels},
 objectives: [{coverage: max}], scheduler: {asha: {metric: coverage, grace: 10, reduction: 2}},
 budget: {trials: 3, hours: 2.0},
 evaluate: {every: 5, seeds: 12, strength: 0.5, features: f, inception: i, lpips: l, identity: d, second_predictor: q},
 resources: {gpus_per_trial: 2, cpus_per_worker: 2, workers: 2},
 denoiser: {tap: mid_block, form: spatial, prompts: [a, b], negative_prompt: n, guidance: 2, shifted: both, size: 256,
            space: latents},
 deepspeed: {zero: 3, offload_optimizer: cpu, offload_param: none, gradient_clipping: 2, precision: bf16},
 gradient: {policy: auto, memory: 2GiB, lean: true, weights: device},
 recovery: {crashes: 1, out_of_memory: 1, preemptions: 1, stalled_minutes: 5, checkpoint_every: 3, keep_trials: 2},
 cluster: {nodes: 2, gpus_per_node: 2, cpus_per_node: 4, memory_per_node: 8GB, hours: 1, root: /r, setup: s, image: i,
           partition: p, account: a, namespace: n, volume: v, secret: s, user: u, instance: i, retries: 1, hosts: [h],
           region: r},
 tracking: {uri: u, experiment: e, system_metrics: false}, study: {uri: 'postgresql://h/d'}, export: {register: r}}
"""
# What says how the same numbers are computed.
WITHOUT_EFFECT: dict[str, Any] = {
    "deepspeed.zero": 2,
    "deepspeed.offload_optimizer": "none",
    "deepspeed.offload_param": "cpu",
    "resources.gpus_per_trial": 0,
    "resources.cpus_per_worker": 3,
    "resources.workers": None,
    "study.uri": None,
    **{f"cluster.{key}": 3 for key in ("nodes", "gpus_per_node", "cpus_per_node", "hours", "retries")},
    **{f"cluster.{key}": "z" for key in ("setup", "image", "partition", "account", "namespace", "volume", "secret")},
    **{f"cluster.{key}": "z" for key in ("user", "instance", "region")},
    "cluster.memory_per_node": "9GB",
    "cluster.root": "/z",
    "cluster.hosts": ["z"],
    "sampler.batch": 16,
    "train.micro_batch": 8,
    "gradient.policy": "keep_steps",
    "gradient.memory": "1GB",
    "gradient.lean": False,
    "gradient.weights": "cpu",
    "tracking.system_metrics": True,
    "recovery.crashes": 0,
    "recovery.out_of_memory": 0,
    "recovery.preemptions": None,
    "recovery.stalled_minutes": 0.5,
    "recovery.checkpoint_every": None,
    "recovery.keep_trials": 1,
}
# What decides which trials there are and when they end, not what one of them comes to.
SWEEP_ONLY_KEYS = ("name", "method", "search", "objectives", "scheduler", "budget", "tracking", "export")
CHANGES: dict[str, Any] = {
    "name": "z",
    "model": "z",
    "predictor": None,
    "method": "learned",
    "seed": 2,
    "denoiser.tap": "blocks.3",
    "denoiser.form": "pooled",
    "denoiser.prompts": ["a face"],
    "denoiser.negative_prompt": "blurred",
    "denoiser.guidance": 7.5,
    "denoiser.shifted": "conditional",
    "denoiser.size": 512,
    "denoiser.space": "pixels",
    "sampler.steps": 7,
    "sampler.injection": "asymmetric",
    "sampler.window": [900, 101],
    "sampler.eta": 0.25,
    "train.iterations": 101,
    "train.batch": 32,
    "train.pool": 64,
    "train.precision": "bf16",
    "train.strength_floor": 0.2,
    "search.directions": 8,
    "search.directions.int": [4, 16],
    "search.directions.step": 2,
    "search.shift_scale.float": [0.5, 2.0],
    "search.shift_scale.log": False,
    "search.discriminator_weight": 0.3,
    "search.consistency_weight": 4,
    "search.purity_weight": 4,
    "search.locality_weight": 4,
    "search.parametrisation.choice": ["shared", "per_step"],
    "search.parametrisation.when": {"directions": 8},
    "search.seed": 2,
    "search.orthonormal": True,
    "search.start": "pca",
    "search.direction_rate": 0.2,
    "search.reconstructor_rate": 0.2,
    "search.discriminator_rate": 0.2,
    "search.learned.look": "denoiser",
    "objectives": [{"globality": "max"}],
    "scheduler": None,
    "scheduler.asha.metric": "globality",
    "scheduler.asha.grace": 11,
    "scheduler.asha.reduction": 3,
    "budget.trials": 4,
    "budget.hours": None,
    "evaluate.every": 6,
    "evaluate.seeds": 13,
    "evaluate.strength": 0.6,
    "evaluate.features": "a/clip",
    "evaluate.inception": "inception.safetensors",
    "evaluate.lpips": "lpips.safetensors",
    "evaluate.identity": "face.safetensors",
    "evaluate.second_predictor": "a/second",
    "deepspeed.gradient_clipping": None,
    "deepspeed.precision": "fp32",
    "tracking.uri": None,
    "tracking.experiment": "f",
    "export.register": None,
}


def _leaves(data: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        leaf
        for key, value in data.items()
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"})
    }


def test_the_changes_cover_every_field() -> None:
    fields = _leaves(sweep_of("{}").resolved()) | _leaves(parse(yaml.safe_load(FULL)).resolved())
    untold = (
        fields
        - set(CHANGES)
        - set(WITHOUT_EFFECT)
        - {"method.choice", "search.directions.log", "search.directions.choice"}
    )
    assert {field for field in untold if not any(change.startswith(f"{field}.") for change in CHANGES)} == {
        "deepspeed.nvme_path",
        "denoiser.classes",
        "search.parametrisation.when.method",
    }


def test_the_classes_of_a_model_are_part_of_the_identity() -> None:
    """They stand beside no prompts, which every other file of these tests has."""
    one, other = (sweep_of(f"{{denoiser: {{classes: {classes}}}}}") for classes in ("[1]", "[1, 2]"))
    assert len({one.identity(), other.identity(), sweep_of("{}").identity()}) == 3


def test_the_folder_on_an_nvme_disk_is_no_part_of_the_identity() -> None:
    one, other = (
        sweep_of(f"{{deepspeed: {{zero: 3, offload_param: nvme, nvme_path: {path}}}}}") for path in ("/d", "/e")
    )
    assert one.identity() == other.identity() == sweep_of("{deepspeed: {zero: 3}}").identity()


def place_of(path: str, data: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The section that a path leads to, and the key there; a parameter's own name may have a dot."""
    section, _, key = path.partition(".")
    while key:
        data = data[section]
        if key in data:
            return data, key
        section, _, key = key.partition(".")
    return data, section


@pytest.mark.parametrize("path", [*CHANGES, *WITHOUT_EFFECT])
def test_identity_changes_with_what_decides_results(path: str) -> None:
    """And not with what only says how they are computed: a sweep that ran out of memory goes on with another policy."""
    data, changes = yaml.safe_load(FULL), CHANGES | WITHOUT_EFFECT
    before = parse(data).identity()
    changed = copy.deepcopy(data)
    target, last = place_of(path, changed)
    assert target[last] != changes[path]
    target[last] = changes[path]
    assert (parse(changed).identity() == before) == (path in WITHOUT_EFFECT)
    assert len(before) == 64


@pytest.mark.parametrize("path", [*CHANGES, *WITHOUT_EFFECT])
def test_a_trial_is_another_where_it_would_come_to_something_else(path: str) -> None:
    """Not where another sweep runs it, or by other means: its parameters are given beside these."""
    data, changes = yaml.safe_load(FULL), CHANGES | WITHOUT_EFFECT
    before = parse(data).trial_key({"directions": 8}, "w")
    target, last = place_of(path, data)
    target[last] = changes[path]
    same = path in WITHOUT_EFFECT or path.partition(".")[0] in SWEEP_ONLY_KEYS or path == "evaluate.every"
    assert (parse(data).trial_key({"directions": 8}, "w") == before) == same


def test_a_trial_is_another_with_other_parameters_or_weights() -> None:
    sweep = sweep_of("{}")
    keys = {sweep.trial_key(*each) for each in [({"a": 1}, "w"), ({"a": 2}, "w"), ({"a": 1}, "v"), ({"a": 1.0}, "w")]}
    assert len(keys) == 4
    assert sweep.trial_key({"a": 1, "b": 2}, "w") == sweep.trial_key({"b": 2, "a": 1}, "w")


def _reversed(data: Any) -> Any:
    return {key: _reversed(data[key]) for key in reversed(data)} if isinstance(data, dict) else data


def test_identity_does_not_change_with_spelling() -> None:
    data = yaml.safe_load(FULL)
    assert parse(_reversed(data)).identity() == parse(data).identity()
    spelt = sweep_of("{train: {batch: 16}, search: {directions: {choice: [8, 12]}, start: slopes, shift_scale: 0.5}}")
    assert spelt.identity() == sweep_of("{}").identity()


def digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_identities_are_digests_of_what_decides_and_of_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written down in sweeps that are under way: another spelling of the same would be another sweep."""
    sweep = parse({"name": "a", "model": "toyfaces", "search": {}, "budget": {"trials": 1}})
    decides = result_keys(sweep.resolved())
    assert sweep.identity() == digest_of({"schema": SCHEMA_VERSION, "sweep": decides})
    parameters = {"method": "learned", "directions": 8}
    key = sweep.trial_key(parameters, "weights")
    others = {sweep.trial_key(parameters, "other weights"), sweep.trial_key({**parameters, "directions": 9}, "weights")}
    assert len(others | {key}) == 3
    identity = sweep.identity()
    monkeypatch.setattr("orchestrator.spec.sweep.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    assert sweep.identity() != identity and sweep.trial_key(parameters, "weights") != key
