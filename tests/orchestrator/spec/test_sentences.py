"""Every mistake in a sweep file is told, in these words."""

import pytest

from orchestrator.spec import PARAMETERS, SpecError
from tests.orchestrator.spec.test_sweep import sweep_of

KEYS = (
    "name, model, predictor, method, seed, denoiser, sampler, train, search, objectives, scheduler, budget, evaluate, "
    "resources, deepspeed, gradient, recovery, cluster, tracking, study, export"
)
SEARCHABLE = ", ".join(PARAMETERS)
METHOD_NAMES = "learned, guided, pca, jacobian, semantic, sae, supervised, random"
METRIC_NAMES = (
    "factor_score, factor_coverage, purity, told_apart, identifiability, strength_error, fidelity_kid, globality, "
    "diversity, monotonicity, evenness, locality, disentanglement, coverage, second_disentanglement, second_coverage, "
    "fid, inception_kid, lpips, identity"
)
SLUG = "at most 100 of A-Z a-z 0-9 . _ -, the first a letter or digit"
TEXT = "text, not empty (quote what YAML reads as a number or a truth value)"
HOURS = "a number of hours > 0, or a time such as 12:00:00, 90m, 1.5h or 2d"
WINDOW = "[high, low], integers with high > low >= 0, or null"
SIZE = "a number above 0 with MB, GB, MiB or GiB, such as 20GiB, or auto"
GPUS = "a number from 0 to 1, or a whole number of GPUs"


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
    ("model: on", f"model: is not text (got on); allowed: {TEXT}; YAML reads on as true: write true, or 'on' for text"),
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
    ("sampler: {steps: 0}", "sampler.steps: is out of range (got 0); allowed: an integer >= 1 and <= 10000"),
    ("sampler: {steps: 5.0}", "sampler.steps: is not an integer (got 5.0); allowed: an integer >= 1 and <= 10000"),
    ("sampler: {steps: true}", "sampler.steps: is not an integer (got true); allowed: an integer >= 1 and <= 10000"),
    ("sampler: {eta: true}", "sampler.eta: is not a number (got true); allowed: a number >= 0 and <= 1"),
    ("sampler: {eta: '0.5'}", "sampler.eta: is not a number (got '0.5'); allowed: a number >= 0 and <= 1"),
    ("sampler: {eta: .nan}", "sampler.eta: is not a finite number (got .nan); allowed: a number >= 0 and <= 1"),
    ("budget: {hours: .inf}", f"budget.hours: is not a finite number (got .inf); allowed: {HOURS}, or null"),
    ("budget: {hours: 1e999}", f"budget.hours: is not a finite number (got .inf); allowed: {HOURS}, or null"),
    ("budget: {hours: 0}", f"budget.hours: is out of range (got 0); allowed: {HOURS}, or null"),
    ("budget: {trials: 0}", "budget.trials: is out of range (got 0); allowed: an integer >= 1 and <= 100000"),
    ("train: {strength_floor: 1}", "train.strength_floor: is out of range (got 1); allowed: a number >= 0 and < 1"),
    ("train: {micro_batch: 0}", "train.micro_batch: is out of range (got 0); allowed: an integer >= 1, or null"),
    ("evaluate: {strength: 0}", "evaluate.strength: is out of range (got 0); allowed: a number > 0, or null"),
    (
        "{predictor: a/b, evaluate: {second_predictor: a/b}}",
        "evaluate.second_predictor: is the predictor itself (got 'a/b'); allowed: another one than predictor, or null",
    ),
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
        "search.directions.when.start: is not known (got 'pac'); allowed: slopes, pca, random; did you mean 'pca'?",
    ),
    (
        "search: {directions: {choice: [8, 9], when: {start: [pca, slopes]}}}",
        "search.directions.when.start: start never takes this value (got 'pca'); allowed: slopes",
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
