"""Sweep files: every mistake is told, in these words; and two spellings of one sweep are one sweep."""

import copy
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.spec import (
    PARAMETERS,
    SCHEMA_VERSION,
    Fixed,
    FloatRange,
    IntRange,
    SpecError,
    Sweep,
    load,
    parse,
    result_keys,
)
from orchestrator.spec.domains import LARGEST, Whole, Window
from orchestrator.spec.problems import Refused, nearest, shown

ROOT = Path(__file__).parents[3]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))
HEADINGS = ["Purpose", "Command", "Hardware", "Time", "Result"]
KEYS = (
    "name, model, predictor, method, seed, denoiser, sampler, train, search, objectives, scheduler, budget, evaluate, "
    "resources, deepspeed, gradient, recovery, cluster, tracking, study, export"
)
SEARCHABLE = ", ".join(PARAMETERS)
METHOD_NAMES = "learned, pca, jacobian, supervised, random"
METRIC_NAMES = (
    "identifiability, strength_error, fidelity_kid, globality, diversity, monotonicity, disentanglement, coverage, "
    "fid, inception_kid, lpips, identity"
)
SLUG = "at most 100 of A-Z a-z 0-9 . _ -, the first a letter or digit"
TEXT = "text, not empty (quote what YAML reads as a number or a truth value)"
WINDOW = "[high, low], integers with 1000 >= high > low >= 0, or null"
SIZE = "a number above 0 with MB, GB, MiB or GiB, such as 20GiB, or auto"
GPUS = "a number from 0 to 1, or a whole number of GPUs"
BASE = "name: a\nmodel: toyfaces\nsearch: {directions: {choice: [8, 12]}}\n"


def sweep_of(text: str) -> Sweep:
    """The sweep of BASE with the top-level keys of `text` in place of its own."""
    return parse(yaml.safe_load(BASE) | yaml.safe_load(text))


def mistakes_of(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        sweep_of(text)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


SENTENCES = [
    # keys
    ("serach: 1", f"serach: is not a known key (got 1); allowed: {KEYS}; did you mean 'search'?"),
    ("zzz: {a: [1, 2]}", f"zzz: is not a known key (got {{a: [1, 2]}}); allowed: {KEYS}"),
    ("1: 2", f"1: is not a known key (got 1); allowed: {KEYS}"),
    (
        "sampler: {stps: 5}",
        "sampler.stps: is not a known key (got 5); allowed: steps, injection, window, eta, batch; "
        "did you mean 'steps'?",
    ),
    (
        "sampler: 5",
        "sampler: is not a mapping (got 5); allowed: a mapping with steps, injection, window, eta, batch",
    ),
    # text
    ("name: a b", f"name: is not a name (got 'a b'); allowed: {SLUG}"),
    ("name: -a", f"name: is not a name (got '-a'); allowed: {SLUG}"),
    ("name: 7", f"name: is not a name (got 7); allowed: {SLUG}"),
    ("name: cache", f"name: is the name of what all sweeps share (got 'cache'); allowed: {SLUG}"),
    ("model: ''", f"model: is empty (got ''); allowed: {TEXT}"),
    ("model: on", f"model: is not text (got true); allowed: {TEXT}"),
    ("predictor: 5", f"predictor: is not text (got 5); allowed: {TEXT}, or null"),
    ("tracking: {uri: 5}", f"tracking.uri: is not text (got 5); allowed: {TEXT}, or null"),
    (
        "tracking: {system_metrics: 10}",
        "tracking.system_metrics: is neither true nor false (got 10); allowed: true or false",
    ),
    ("export: {register: []}", f"export.register: is not text (got []); allowed: {TEXT}, or null"),
    # method
    (
        "method: lerned",
        f"method: is not known (got 'lerned'); allowed: {METHOD_NAMES}; did you mean 'learned'?",
    ),
    (
        "method: {choice: [random, ica]}",
        f"method.choice[1]: is not known (got 'ica'); allowed: {METHOD_NAMES}; did you mean 'pca'?",
    ),
    (
        "method: {choice: []}",
        "method.choice: is an empty search space (got []); allowed: a list of one value or more",
    ),
    ("method: {when: {start: pca}}", "method.when: is not a known key (got {start: 'pca'}); allowed: choice"),
    ("method: {}", "method.choice: is not a list (got null); allowed: a list of values"),
    # numbers
    ("seed: -1", "seed: is out of range (got -1); allowed: an integer >= 0 and <= 4294967295"),
    ("sampler: {steps: 0}", "sampler.steps: is out of range (got 0); allowed: an integer >= 1 and <= 1000"),
    ("sampler: {steps: 5.0}", "sampler.steps: is not an integer (got 5.0); allowed: an integer >= 1 and <= 1000"),
    ("sampler: {steps: true}", "sampler.steps: is not an integer (got true); allowed: an integer >= 1 and <= 1000"),
    ("sampler: {eta: true}", "sampler.eta: is not a number (got true); allowed: a number >= 0 and <= 1"),
    ("sampler: {eta: '0.5'}", "sampler.eta: is not a number (got '0.5'); allowed: a number >= 0 and <= 1"),
    ("sampler: {eta: .nan}", "sampler.eta: is not a finite number (got .nan); allowed: a number >= 0 and <= 1"),
    ("budget: {hours: .inf}", "budget.hours: is not a finite number (got .inf); allowed: a number > 0, or null"),
    ("budget: {hours: 1e999}", "budget.hours: is not a finite number (got '1e999'); allowed: a number > 0, or null"),
    ("budget: {hours: 0}", "budget.hours: is out of range (got 0); allowed: a number > 0, or null"),
    ("budget: {trials: 0}", "budget.trials: is out of range (got 0); allowed: an integer >= 1 and <= 100000"),
    ("train: {strength_floor: 1}", "train.strength_floor: is out of range (got 1); allowed: a number >= 0 and < 1"),
    ("train: {micro_batch: 0}", "train.micro_batch: is out of range (got 0); allowed: an integer >= 1, or null"),
    ("evaluate: {strength: 0}", "evaluate.strength: is out of range (got 0); allowed: a number > 0, or null"),
    ("evaluate: {seeds: 5}", "evaluate.seeds: is out of range (got 5); allowed: an integer >= 6"),
    ("resources: {gpus_per_trial: -1}", f"resources.gpus_per_trial: is not a number of GPUs (got -1); allowed: {GPUS}"),
    (
        "resources: {gpus_per_trial: 1.5}",
        f"resources.gpus_per_trial: is neither a share of one GPU nor whole GPUs (got 1.5); allowed: {GPUS}",
    ),
    # words
    (
        "sampler: {injection: Symetric}",
        "sampler.injection: is not known (got 'Symetric'); allowed: symmetric, asymmetric; did you mean 'symmetric'?",
    ),
    ("deepspeed: {zero: 4}", "deepspeed.zero: is out of range (got 4); allowed: an integer >= 0 and <= 3"),
    (
        "deepspeed: {zero: 0, offload_optimizer: cpu}",
        "deepspeed.offload_optimizer: has no effect with ZeRO-0, which leaves Adam's state in one piece (got 'cpu'); "
        "allowed: none, or deepspeed.zero: 1, 2 or 3",
    ),
    (
        "deepspeed: {zero: 2, offload_optimizer: nvme, nvme_path: /d}",
        "deepspeed.offload_optimizer: has no effect with ZeRO-2, which offloads to the CPU's memory alone "
        "(got 'nvme'); allowed: none, cpu, or deepspeed.zero: 3",
    ),
    (
        "deepspeed: {zero: 2, offload_param: cpu}",
        "deepspeed.offload_param: has no effect with ZeRO-2, which leaves parameters in one piece (got 'cpu'); "
        "allowed: none, or deepspeed.zero: 3",
    ),
    (
        "deepspeed: {zero: 3, offload_param: nvme}",
        "deepspeed.nvme_path: says nowhere to offload to (got null); allowed: a folder on a disk of the machine",
    ),
    (
        "deepspeed: {zero: 3, offload_param: cpu, nvme_path: /d}",
        "deepspeed.nvme_path: has no effect where nothing is offloaded to nvme (got '/d'); allowed: null",
    ),
    (
        "deepspeed: {gradient_clipping: 0}",
        "deepspeed.gradient_clipping: is out of range (got 0); allowed: a number > 0, or null",
    ),
    (
        "gradient: {policy: keep_step}",
        "gradient.policy: is not known (got 'keep_step'); allowed: auto, full_graph, keep_steps, checkpoint_steps, "
        "checkpoint_blocks, deepspeed; did you mean 'keep_steps'?",
    ),
    (
        "gradient: {memroy: auto}",
        "gradient.memroy: is not a known key (got 'auto'); allowed: policy, memory, lean, weights; "
        "did you mean 'memory'?",
    ),
    (
        "gradient: {weights: partitioned}",
        "gradient.weights: needs workers to share them (got 'partitioned'); allowed: device or cpu, or "
        "resources.workers: 2 or more",
    ),
    ("gradient: {lean: 1}", "gradient.lean: is neither true nor false (got 1); allowed: true or false"),
    ("gradient: {memory: 20}", f"gradient.memory: is not an amount of memory (got 20); allowed: {SIZE}"),
    ("gradient: {memory: lots}", f"gradient.memory: is not an amount of memory (got 'lots'); allowed: {SIZE}"),
    ("gradient: {memory: 0GiB}", f"gradient.memory: is no memory (got '0GiB'); allowed: {SIZE}"),
    (
        "gradient: {memory: 20gib}",
        f"gradient.memory: is not an amount of memory (got '20gib'); allowed: {SIZE}; did you mean '20GiB'?",
    ),
    (
        "gradient: {memory: 20TB}",
        f"gradient.memory: is not an amount of memory (got '20TB'); allowed: {SIZE}",
    ),
    (
        "gradient: {policy: full_graph, memory: 20GiB}",
        "gradient.memory: has no effect with policy full_graph (got '20GiB'); allowed: auto, or "
        "gradient.policy: auto or keep_steps",
    ),
    (
        "train: {precision: fp61}",
        "train.precision: is not known (got 'fp61'); allowed: fp32, tf32, bf16, fp16; did you mean 'fp16'?",
    ),
    # window
    ("sampler: {window: 500}", f"sampler.window: is not a pair of timesteps (got 500); allowed: {WINDOW}"),
    ("sampler: {window: [9, 1.5]}", f"sampler.window: is not a pair of timesteps (got [9, 1.5]); allowed: {WINDOW}"),
    ("sampler: {window: [1, 9]}", f"sampler.window: is not a window of timesteps (got [1, 9]); allowed: {WINDOW}"),
    # scheduler
    (
        "scheduler: asha",
        "scheduler: is not a mapping (got 'asha'); allowed: a mapping with asha",
    ),
    ("scheduler: {}", "scheduler.asha: is missing; allowed: a mapping with metric, grace, reduction"),
    ("scheduler: {asha: {}}", "scheduler.asha.grace: is missing; allowed: an integer >= 1"),
    (
        "scheduler: {asha: {grace: 9, metric: fie}}",
        f"scheduler.asha.metric: no metric provides 'fie'; allowed: {METRIC_NAMES}, or null; did you mean 'fid'?",
    ),
    (
        "scheduler: {asha: {grace: 401}}",
        "scheduler.asha.grace: is longer than a trial (got 401); allowed: at most train.iterations, 400",
    ),
    # what the model is told
    (
        "denoiser: {tap: 'mid block'}",
        "denoiser.tap: is not the name of a tap (got 'mid block'); allowed: mid_block of a UNet, or blocks.N of a "
        "transformer, or null",
    ),
    (
        "denoiser: {form: space}",
        "denoiser.form: is not known (got 'space'); allowed: spatial, tokens, pooled, or null",
    ),
    (
        "denoiser: {prompts: [a, a]}",
        "denoiser.prompts: names something twice (got ['a', 'a']); allowed: a list of different values, each text "
        "(quote what YAML reads as a number or a truth value)",
    ),
    (
        "denoiser: {classes: [-1]}",
        "denoiser.classes: is out of range (got -1); allowed: an integer >= 0",
    ),
    (
        "denoiser: {prompts: [a], classes: [1]}",
        "denoiser.prompts: stands beside denoiser.classes (got ['a']); allowed: prompts for a model that reads text, "
        "classes for one of classes",
    ),
    (
        "denoiser: {negative_prompt: ugly}",
        "denoiser.negative_prompt: leads nowhere (got 'ugly'); allowed: with a denoiser.guidance other than 1",
    ),
    (
        "denoiser: {space: pixel}",
        "denoiser.space: is not known (got 'pixel'); allowed: latents, pixels; did you mean 'pixels'?",
    ),
    # objectives
    (
        "objectives: [{identifiabilty: max}]",
        f"objectives[0]: no metric provides 'identifiabilty'; allowed: {METRIC_NAMES}; did you mean 'identifiability'?",
    ),
    (
        "objectives: [{fidelity_kid: max}]",
        "objectives[0].fidelity_kid: is not the direction of this metric (got 'max'); allowed: min",
    ),
    (
        "objectives: [{coverage: max}, {coverage: max}]",
        "objectives[1]: is given twice (got {coverage: 'max'}); allowed: each metric once",
    ),
    ("objectives: [coverage]", "objectives[0]: is not an objective (got 'coverage'); allowed: {metric: max or min}"),
    (
        "objectives: []",
        "objectives: is not a list of objectives (got []); allowed: a list of one to four {metric: max or min}",
    ),
    # between parts
    (
        "train: {batch: 16, micro_batch: 5}",
        "train.micro_batch: does not divide a worker's batch (got 5); allowed: a divisor of 16 (train.batch of 16)",
    ),
    (
        "{train: {batch: 16, micro_batch: 8}, resources: {gpus_per_trial: 4}}",
        "train.micro_batch: does not divide a worker's batch (got 8); "
        "allowed: a divisor of 4 (train.batch of 16 over 4 workers)",
    ),
    (
        "resources: {gpus_per_trial: 3}",
        "train.batch: does not split over the workers of a trial (got 16); "
        "allowed: a multiple of 3, one share for each worker",
    ),
    # search
    (
        "search: [directions]",
        "search: is not a mapping (got ['directions']); allowed: a mapping of parameters to their values",
    ),
    (
        "search: {directons: {choice: [8, 9]}}",
        "search.directons: is not a known key (got {choice: [8, 9]}); "
        f"allowed: {SEARCHABLE}; did you mean 'directions'?",
    ),
    ("search: {directions: 1}", "search.directions: is out of range (got 1); allowed: an integer >= 2 and <= 4096"),
    (
        "search: {directions: null}",
        "search.directions: is not an integer (got null); allowed: an integer >= 2 and <= 4096",
    ),
    ("search: {orthonormal: 1}", "search.orthonormal: is neither true nor false (got 1); allowed: true or false"),
    (
        "search: {directions: {}}",
        "search.directions: does not say which values to search (got {}); "
        "allowed: a value, or a mapping with choice or int",
    ),
    (
        "search: {directions: {chioce: [8]}}",
        "search.directions.chioce: is not a known key (got [8]); "
        "allowed: choice, int, step, log, when; did you mean 'choice'?",
    ),
    (
        "search: {directions: {choice: [8], step: 2}}",
        "search.directions.step: is not a known key (got 2); allowed: choice, when",
    ),
    (
        "search: {directions: {choice: [8], int: [8, 9]}}",
        "search.directions: mixes choice and int (got {choice: [8], int: [8, 9]}); allowed: one of choice, int",
    ),
    (
        "search: {directions: {float: [8, 9]}}",
        "search.directions: cannot be searched as float (got {float: [8, 9]}); allowed: choice, int",
    ),
    (
        "search: {shift_scale: {int: [1, 2]}}",
        "search.shift_scale: cannot be searched as int (got {int: [1, 2]}); allowed: choice, float",
    ),
    (
        "search: {directions: {choice: 8}}",
        "search.directions.choice: is not a list (got 8); allowed: a list of values",
    ),
    (
        "search: {directions: {choice: []}}",
        "search.directions.choice: is an empty search space (got []); allowed: a list of one value or more",
    ),
    (
        "search: {directions: {choice: [8, 9, 8]}}",
        "search.directions.choice[2]: is given twice (got 8); allowed: each value once",
    ),
    (
        "search: {directions: {int: 8}}",
        "search.directions.int: is not a range (got 8); allowed: [low, high]",
    ),
    (
        "search: {directions: {int: [1, 8]}}",
        "search.directions.int[0]: is out of range (got 1); allowed: an integer >= 2 and <= 4096",
    ),
    (
        "search: {shift_scale: {float: [2, 2.0]}}",
        "search.shift_scale.float: is an empty range (got [2, 2.0]); "
        "allowed: [low, high] with low < high, or one value without brackets",
    ),
    (
        "search: {shift_scale: {float: [3, 2]}}",
        "search.shift_scale.float: is upside down (got [3, 2]); allowed: [low, high] with low < high",
    ),
    (
        "search: {discriminator_weight: {float: [0, 2], log: true}}",
        "search.discriminator_weight.log: needs a low end above 0 (got 0.0); allowed: low > 0, or log: false",
    ),
    (
        "search: {directions: {int: [8, 16], log: yess}}",
        "search.directions.log: is neither true nor false (got 'yess'); allowed: true or false",
    ),
    (
        "search: {directions: {int: [8, 16], step: 0}}",
        "search.directions.step: is out of range (got 0); allowed: an integer >= 1",
    ),
    (
        "search: {directions: {int: [8, 16], step: 3}}",
        "search.directions.step: does not lead from low to high (got 3); allowed: a divisor of 8",
    ),
    (
        "search: {directions: {int: [8, 16], step: 4, log: true}}",
        "search.directions.step: cannot go with log (got 4); allowed: step 1, or log: false",
    ),
    (
        "search: {directions: 8}",
        "search: nothing is searched, so every trial would be the same (got {directions: 8}); "
        "allowed: at least one parameter with choice, int or float, or budget.trials: 1",
    ),
    (
        "search: null",
        "search: nothing is searched, so every trial would be the same (got {}); "
        "allowed: at least one parameter with choice, int or float, or budget.trials: 1",
    ),
    # when
    (
        "search: {directions: {choice: [8, 9], when: pca}}",
        "search.directions.when: is not a mapping (got 'pca'); allowed: {other parameter: value or list of values}",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {strat: pca}}}",
        f"search.directions.when.strat: is not a known key (got 'pca'); allowed: method, {SEARCHABLE}; "
        "did you mean 'start'?",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {start: []}}}",
        "search.directions.when.start: is an empty condition (got []); allowed: a value or a list of values",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {start: pac}}}",
        "search.directions.when.start: is not known (got 'pac'); allowed: flattest, pca, random; did you mean 'pca'?",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {start: [pca, flattest]}}}",
        "search.directions.when.start: start never takes this value (got 'pca'); allowed: flattest",
    ),
    (
        "search: {start: {choice: [pca, random], when: {directions: 9}}, directions: {int: [8, 16], step: 4}}",
        "search.start.when.directions: directions never takes this value (got 9); allowed: 8 to 16 in steps of 4",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {method: random}}}",
        "search.directions.when.method: method never takes this value (got 'random'); allowed: learned",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {shift_scale: 1}}, shift_scale: {float: [1, 2]}}",
        "search.directions.when.shift_scale: shift_scale is continuous and never hits a given value (got [1.0]); "
        "allowed: a parameter with a choice or an int range",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {directions: 8}}}",
        "search.directions.when: waits for itself: directions -> directions; allowed: conditions without a circle",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {start: pca}}, "
        "start: {choice: [pca, random], when: {orthonormal: true}}, "
        "orthonormal: {choice: [true, false], when: {directions: 8}}}",
        "search.directions.when: waits for itself: directions -> start -> orthonormal -> directions; "
        "allowed: conditions without a circle",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), SENTENCES, ids=[text for text, _ in SENTENCES])
def test_a_mistake_is_told_in_one_sentence(text: str, sentence: str) -> None:
    assert mistakes_of(text) == [sentence]


def test_required_keys() -> None:
    with pytest.raises(SpecError) as caught:
        parse({})
    assert caught.value.problems == [
        f"name: is missing; allowed: {SLUG}",
        f"model: is missing; allowed: {TEXT}",
        "search: is missing; allowed: a mapping of parameters to their values",
    ]


def test_a_misspelt_required_key_is_one_mistake() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"nmae": "a", "model": "b", "search": {"directions": {"choice": [8, 9]}}})
    assert caught.value.problems == [
        f"nmae: is not a known key (got 'a'); allowed: {KEYS}; did you mean 'name'?",
    ]


def test_five_mistakes_are_five_lines(tmp_path: Path) -> None:
    path = tmp_path / "five.yaml"
    path.write_text(
        "name: five\nmodel: toyfaces\nmethod: lerned\nsampler: {steps: many, injecton: symmetric}\n"
        "train: {batch: 16, micro_batch: 5}\nsearch: {shift_scale: {float: [3, 1]}}\n"
    )
    with pytest.raises(SpecError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:3: method: is not known (got 'lerned'); allowed: {METHOD_NAMES}; did you mean 'learned'?",
        f"{path}:4: sampler.steps: is not an integer (got 'many'); allowed: an integer >= 1 and <= 1000",
        f"{path}:4: sampler.injecton: is not a known key (got 'symmetric'); allowed: steps, injection, window, eta, "
        "batch; did you mean 'injection'?",
        f"{path}:6: search.shift_scale.float: is upside down (got [3, 1]); allowed: [low, high] with low < high",
        f"{path}:5: train.micro_batch: does not divide a worker's batch (got 5); allowed: a divisor of 16 (train.batch "
        "of 16)",
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("{train: {iterations: many}, scheduler: {asha: {grace: 1000}}}", 1),
        ("{train: {iteratons: 4000}, scheduler: {asha: {grace: 1000}}}", 1),
        ("{train: {batch: 0, micro_batch: 5}}", 1),
        ("{search: {directions: {choice: [0, 8]}}, budget: {trials: 4}}", 1),
        ("{search: {strat: {choice: [pca, random]}, directions: {choice: [8, 9], when: {start: random}}}}", 1),
        ("{method: lerned, search: {directions: {choice: [8, 9], when: {method: random}}}}", 1),
        ("{scheduler: {asha: {grace: 1000, reduction: 1}}, train: {batch: 8, micro_batch: 3}}", 3),
        ("{search: {directions: {choice: [0, 1, x]}, start: {choice: [x, y]}}, method: {choice: [x]}}", 6),
    ],
)
def test_nothing_is_concluded_from_a_value_that_is_wrong(text: str, count: int) -> None:
    assert len(mistakes_of(text)) == count


@pytest.mark.parametrize("data", [None, [], "name: a", 5])
def test_data_that_is_no_mapping(data: object) -> None:
    with pytest.raises(SpecError, match=r"^a sweep must be a mapping with keys such as name, model and search \(got "):
        parse(data)


FILES = [
    (b"", "{path}: is not a sweep: the file must hold keys such as name, model and search"),
    (b"- a", "{path}: is not a sweep: the file must hold keys such as name, model and search"),
    (b"\xff\xfe\xfa", "{path}: is not text in UTF-8"),
    (b"a: [1", "{path}: is not YAML: expected ',' or ']', but got '<stream end>' (line 1, column 6)"),
    (b"a: 1\n\tb: 2", "{path}: is not YAML: found character '\\t' that cannot start any token (line 2, column 1)"),
    (b"a: 2026-13-45", "{path}: is not YAML: month must be in 1..12"),
    (b"a: \x00", "{path}: is not YAML: unacceptable character #x0000: special characters are not allowed"),
    (
        b"a: !!python/name:os.system",
        "{path}: is no sweep: tags such as 'tag:yaml.org,2002:python/name:os.system' are not read (line 1, column 4)",
    ),
    (b"a: !!bool x", "{path}: is no sweep: tags such as 'tag:yaml.org,2002:bool' are not read (line 1, column 4)"),
    (b"#" * (1 << 20) + b"\n", "{path}: is no sweep: it is longer than 1048576 bytes"),
    (b"[" * 10_000, "{path}: is no sweep: more than 20 lists and mappings inside each other (line 1, column 21)"),
    (b"- " * 10_000, "{path}: is no sweep: more than 20 lists and mappings inside each other (line 1, column 41)"),
    (
        b"[" + b"1," * 5_000 + b"]",
        "{path}: is no sweep: more than 5000 values, counting those that aliases repeat (line 1, column 10000)",
    ),
    (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 10)) for n in b"bcd"),
        "{path}: is no sweep: more than 5000 values, counting those that aliases repeat (line 4, column 14)",
    ),
    (b"[&a 1" + b", *a" * 101 + b"]", "{path}: is no sweep: more than 100 aliases (line 1, column 408)"),
    (b"a: &a {<<: *a}", "{path}: is no sweep: *a stands inside what it repeats (line 1, column 12)"),
    (b"a: " + b"x" * 5_000, "{path}: is no sweep: text of more than 4096 characters (line 1, column 4)"),
    (b"a: 0x" + b"f" * 5_000, "{path}: is no sweep: a number of more than 100 characters (line 1, column 4)"),
    (b"a: " + b"9" * 5_000, "{path}: is no sweep: a number of more than 100 characters (line 1, column 4)"),
    (b'a: "\\0"', "{path}: is no sweep: text with control characters, '\\x00' (line 1, column 4)"),
    (b'a: "\\ud800"', "{path}: is no sweep: text with control characters, '\\ud800' (line 1, column 4)"),
    (b'"a\\eb": 1', "{path}: is no sweep: text with control characters, 'a\\x1bb' (line 1, column 1)"),
    (b"? [a]\n: 1", "{path}: is not YAML: found unhashable key (line 1, column 3)"),
]


@pytest.mark.parametrize(("content", "sentence"), FILES, ids=range(len(FILES)))
def test_a_file_that_is_no_sweep(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.problems == [sentence.format(path=path)]


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as missing:
        load(tmp_path / "no.yaml")
    assert str(missing.value) == f"{tmp_path / 'no.yaml'}: there is no such file"
    with pytest.raises(SpecError) as folder:
        load(tmp_path)
    assert str(folder.value) == f"{tmp_path}: cannot be read: Is a directory"
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SpecError) as endless:
            load(other)
        assert str(endless.value) == f"{other}: cannot be read: It is not an ordinary file"


def test_a_key_given_twice_is_a_mistake_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE + "train:\n  batch: 8\n  iterations: 9\n  batch: 8\nname: b\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.problems == [
        f"{path}:7: train.batch: is given twice (lines 5 and 7)",
        f"{path}:8: name: is given twice (lines 1 and 8)",
    ]


LINES = """\
# a comment
name: a
model:
  toyfaces
sampler: &half
  steps: 0
  eta:
    many
train: {batch: 16,
        micro_batch: 5}
search:
  directions: {choice: [8,
                        1]}
  shift_scale: &range
    float: [3, 1]
  discriminator_weight: *range
  strat: random
evaluate:
  <<: {seeds: 2}
  every: 0
on: 1
objectives:
  - identifiability: max
  - fidelity_kid: max
  - &kid {strength_error: max}
  - *kid
resources:
tracking: 5
"""


def test_a_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(LINES)
    with pytest.raises(SpecError) as caught:
        load(path)
    told = [problem.removeprefix(f"{path}:").split(": ")[:2] for problem in caught.value.problems]
    assert sorted(told, key=lambda one: int(one[0])) == [
        ["6", "sampler.steps"],
        ["8", "sampler.eta"],
        ["10", "train.micro_batch"],
        ["13", "search.directions.choice[1]"],
        ["15", "search.shift_scale.float"],
        ["15", "search.discriminator_weight.float"],  # what is inside of an alias stands at its anchor
        ["17", "search.strat"],
        ["19", "evaluate.seeds"],  # merged in
        ["20", "evaluate.every"],
        ["21", "true"],
        ["24", "objectives[1].fidelity_kid"],
        ["25", "objectives[2].strength_error"],
        ["25", "objectives[3].strength_error"],
        ["28", "tracking"],
    ]


def test_what_is_absent_is_told_with_the_line_of_what_should_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\nname: a\nmodel: &m 5\npredictor: *m\nscheduler:\n\n  asha:\n    reduction: 3\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    assert [problem.removeprefix(f"{path}:").split(": ")[:2] for problem in caught.value.problems] == [
        ["3", "model"],
        ["4", "predictor"],  # an alias stands where it was written
        ["2", "search"],
        ["7", "scheduler.asha.grace"],
    ]


def test_what_an_override_brings_in_stands_on_no_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE + "train: {batch: 16, micro_batch: 8}\nsampler: {steps: 0}\n")
    with pytest.raises(SpecError) as caught:
        load(path, ["train.batch=12", "sampler.eta=9", "x"])
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "--set x",
        f"{path}:5",
        "sampler.eta",
        f"{path}:4",
    ]


def test_an_alias_and_a_merge_key_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: &n a\nmodel: *n\nsearch: {}\nbudget: &b {trials: 1}\ntrain: {batch: 8}\nexport: {register: *n}"
    )
    assert load(path).model == "a" and load(path).export.register_as == "a"
    path.write_text(BASE + "train: &t {batch: 8}\nsampler: {<<: {steps: 5}, steps: 6}")
    assert load(path).sampler.steps == 6


OVERRIDES = [
    ("x", "--set x: is not of the form path=value, like train.batch=8"),
    (".a=1", "--set .a=1: is not of the form path=value, like train.batch=8"),
    (
        "train.batch=[",
        "--set train.batch=[: the value is not YAML: expected the node content, but found '<stream end>' "
        "(line 1, column 2)",
    ),
    ("model.x=1", "--set model.x=1: model holds no keys to set (it is 'toyfaces')"),
    ("train.batch=0", "train.batch: is out of range (got 0); allowed: an integer >= 1"),
    (f"{'a.' * 20}b=1", f"--set {'a.' * 20}b=1: is refused: more than 20 keys inside each other"),
    ("seed=&a [*a]", "--set seed=&a [*a]: is refused: *a stands inside what it repeats (line 1, column 5)"),
    (
        f"seed={'9' * 200}",
        f"--set seed={'9' * 75}...: is refused: a number of more than 100 characters (line 1, column 1)",
    ),
    (
        "seed=!!int x",
        "--set seed=!!int x: is refused: tags such as 'tag:yaml.org,2002:int' are not read (line 1, column 1)",
    ),
    ("train={batch: 1, batch: 2}", "train.batch: is given twice (lines 1 and 1)"),
    (
        "train.bach=2",
        "train.bach: is not a known key (got 2); allowed: iterations, batch, micro_batch, pool, precision, "
        "strength_floor; did you mean 'batch'?",
    ),
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(("override", "sentence"), OVERRIDES)
def test_a_wrong_override_is_told(base: Path, override: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(base, [override])
    assert caught.value.problems == [sentence]


HOSTILE = [
    (
        "train: {batch: 1000000000000}",
        "train.batch: is more than 2147483647 (got 1000000000000); allowed: an integer >= 1",
    ),
    (
        "search: {pca.samples: {int: [2, 1000000000000000000000000000000]}}",
        "search.pca.samples.int[1]: is more than 2147483647 (got 1000000000000000000000000000000); "
        "allowed: an integer >= 2",
    ),
    (
        "resources: {gpus_per_trial: 1.0e+300}",
        f"resources.gpus_per_trial: is more than 2147483647 (got 1e+300); allowed: {GPUS}",
    ),
    (
        f"gradient: {{memory: {'9' * 400}GiB}}",
        f"gradient.memory: is not an amount of memory (got '{'9' * 76}...); allowed: {SIZE}",
    ),
    (f"model: {'x' * 1025}", f"model: is longer than 1024 characters (got '{'x' * 76}...); allowed: {TEXT}"),
    (
        "tracking: {experiment: ../../x}",
        "tracking.experiment: cannot be a folder of the embedded store (got '../../x'); "
        "allowed: at most 100 characters without / and \\, not . or .., or a tracking.uri",
    ),
    ("export: {register: a/b}", "export.register: cannot name a model (got 'a/b'); allowed: text without / and :"),
]


@pytest.mark.parametrize(("text", "sentence"), HOSTILE)
def test_values_that_would_cost_too_much_or_leave_their_folder(text: str, sentence: str) -> None:
    assert mistakes_of(text) == [sentence]


def test_the_shares_of_a_huge_batch_are_found_at_once() -> None:
    assert (
        len(
            sweep_of("{train: {batch: 2147483640}, search: {consistency_weight: 0}, budget: {trials: 1}}").micro_batches
        )
        == 256
    )


def test_an_experiment_of_a_server_may_have_any_name() -> None:
    assert sweep_of("tracking: {uri: 'http://x', experiment: /Users/me/x}").experiment == "/Users/me/x"


def test_parameters_that_all_wait_for_each_other_are_checked_at_once() -> None:
    """Every way through such conditions would take longer than anyone waits."""
    names = [name for name in PARAMETERS if PARAMETERS[name].methods == PARAMETERS["start"].methods]
    many = [name for name in PARAMETERS if name not in names] + names
    values = {name: PARAMETERS[name].default or 0 for name in many}
    search = {name: {"choice": [values[name]], "when": {n: values[n] for n in many[:k]}} for k, name in enumerate(many)}
    with pytest.raises(SpecError) as caught:
        parse({"name": "a", "model": "b", "search": search})
    assert "waits for itself" not in str(caught.value)


def test_overrides_are_set_before_validation(base: Path) -> None:
    sweep = load(base, ["scheduler.asha.grace=7", "search.shift_scale={float: [1e-3, 2]}", "name=b=c", "name=b"])
    assert sweep.scheduler is not None and sweep.scheduler.asha.grace == 7
    assert sweep.search["shift_scale"] == FloatRange(0.001, 2.0)
    assert sweep.name == "b"


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
            "discriminator_weight": 0.1,
            "consistency_weight": 3.0,
            "parametrisation": "shared",
            "orthonormal": True,
            "start": "flattest",
            "direction_rate": 0.02,
            "reconstructor_rate": 0.001,
            "discriminator_rate": 0.0002,
        },
        "objectives": [{"identifiability": "max"}],
        "scheduler": None,
        "budget": {"trials": 16, "hours": None},
        "evaluate": {
            "every": 400,
            "seeds": 24,
            "strength": None,
            "features": None,
            "inception": None,
            "lpips": None,
            "identity": None,
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
    alone = sweep_of(f"{four}, search: {{directions: {{choice: [8, 12]}}, consistency_weight: 0}}}}")
    assert alone.micro_batches == (6, 3, 2, 1)
    for when, sizes in (("{method: learned}", (6, 3, 2, 1)), ("{start: pca}", (6, 2))):
        search = f"start: {{choice: [pca, random]}}, consistency_weight: {{choice: [0], when: {when}}}"
        assert sweep_of(f"{four}, search: {{{search}}}}}").micro_batches == sizes
    assert sweep_of("{train: {batch: 12, micro_batch: 4}}").micro_batches == (12, 6, 4, 2)


@pytest.mark.parametrize(
    ("memory", "text", "size"),
    [("auto", "auto", None), ("null", "auto", None), ("1.5 GiB", "1.5GiB", 3 << 29), ("500MB", "500MB", 500_000_000)],
)
def test_sizes_of_memory(memory: str, text: str, size: int | None) -> None:
    gradient = sweep_of(f"{{gradient: {{memory: {memory}}}}}").gradient
    assert (gradient.memory, gradient.bytes) == (text, size)


def test_a_sweep_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sweep_of("{}").name = "b"


def test_resolved_is_plain_json_and_a_sweep_file_itself() -> None:
    for path in SWEEPS:
        sweep = load(path)
        again = parse(json.loads(json.dumps(sweep.resolved(), allow_nan=False)))
        assert again.resolved() == sweep.resolved()
        assert again.identity() == sweep.identity()


FULL = """
{name: a, model: b, predictor: p, method: {choice: [learned, random]}, seed: 1,
 sampler: {steps: 6, injection: symmetric, window: [900, 100], eta: 0.5, batch: 32},
 train: {iterations: 100, batch: 16, micro_batch: 4, pool: 128, precision: fp32, strength_floor: 0.1},
 search: {directions: {int: [8, 16], step: 4, log: false}, shift_scale: {float: [0.5, 3.0], log: true},
          discriminator_weight: 0.2, parametrisation: {choice: [shared, time], when: {method: learned}},
          seed: 1, consistency_weight: 2, orthonormal: false, start: random,
          direction_rate: 0.1, reconstructor_rate: 0.1, discriminator_rate: 0.1},
 objectives: [{coverage: max}], scheduler: {asha: {metric: coverage, grace: 10, reduction: 2}},
 budget: {trials: 3, hours: 2.0},
 evaluate: {every: 5, seeds: 12, strength: 0.5, features: f, inception: i, lpips: l, identity: d},
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
    "search.parametrisation.choice": ["shared", "per_step"],
    "search.parametrisation.when": {"directions": 8},
    "search.seed": 2,
    "search.orthonormal": True,
    "search.start": "pca",
    "search.direction_rate": 0.2,
    "search.reconstructor_rate": 0.2,
    "search.discriminator_rate": 0.2,
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


@pytest.mark.parametrize("path", [*CHANGES, *WITHOUT_EFFECT])
def test_identity_changes_with_what_decides_results(path: str) -> None:
    """And not with what only says how they are computed: a sweep that ran out of memory goes on with another policy."""
    data, changes = yaml.safe_load(FULL), CHANGES | WITHOUT_EFFECT
    before = parse(data).identity()
    changed = copy.deepcopy(data)
    *parents, last = path.split(".")
    target = changed
    for part in parents:
        target = target[part]
    assert target[last] != changes[path]
    target[last] = changes[path]
    assert (parse(changed).identity() == before) == (path in WITHOUT_EFFECT)
    assert len(before) == 64


@pytest.mark.parametrize("path", [*CHANGES, *WITHOUT_EFFECT])
def test_a_trial_is_another_where_it_would_come_to_something_else(path: str) -> None:
    """Not where another sweep runs it, or by other means: its parameters are given beside these."""
    data, changes = yaml.safe_load(FULL), CHANGES | WITHOUT_EFFECT
    before = parse(data).trial_key({"directions": 8}, "w")
    *parents, last = path.split(".")
    target = data
    for part in parents:
        target = target[part]
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
    spelt = sweep_of("{train: {batch: 16}, search: {directions: {choice: [8, 12]}, start: flattest, shift_scale: 0.5}}")
    assert spelt.identity() == sweep_of("{}").identity()


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
    assert sweep.possible_values("consistency_weight", "learned") == (0.0, 3.0)
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


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("LEARNED", "learned"),
        ("Learned", "learned"),
        ("lerned", "learned"),
        ("PCA", "pca"),
        ("autoencoderkl", "AutoencoderKL"),
        ("ica", "pca"),
        ("xyz", None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_the_nearest_spelling_minds_no_capitals(word: object, near: str | None) -> None:
    assert nearest(word, ("learned", "pca", "AutoencoderKL")) == near


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


@pytest.mark.parametrize(
    ("window", "allowed"),
    [([1000, 0], True), ([1, 0], True), ([9, 9], False), ([1001, 0], False), ([5, -1], False), ([0, 1], False)],
)
def test_the_ends_of_a_window(window: list[int], allowed: bool) -> None:
    if allowed:
        assert Window().check(window) == tuple(window)
    else:
        with pytest.raises(Refused, match="is not a window of timesteps"):
            Window().check(window)


def test_the_ends_of_whole_numbers() -> None:
    assert [Whole(2, 5).check(value) for value in (2, 5)] == [2, 5] and Whole(0).check(LARGEST) == LARGEST
    for value in (1, 6):
        with pytest.raises(Refused, match="is out of range"):
            Whole(2, 5).check(value)
    with pytest.raises(Refused, match=f"is more than {LARGEST}"):
        Whole(0).check(LARGEST + 1)


def test_numbers_that_are_not_finite_are_shown_as_yaml_writes_them() -> None:
    assert [shown(value) for value in (math.inf, -math.inf, math.nan)] == [".inf", "-.inf", ".nan"]


def test_of_a_long_value_the_first_eight_are_shown() -> None:
    assert shown(list(range(8))) == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert shown(list(range(9))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"
