"""Check that the parts of a sweep fit each other.

Each check yields the paths that it reads and a Problem. The Problem is dropped where a value at one of the paths is
already known to be wrong.
"""

from collections.abc import Iterable, Iterator, Sequence

from orchestrator.spec.distributions import Distribution, Fixed, countable
from orchestrator.spec.problems import Path, Problem, complaint, shown
from orchestrator.spec.sections import DeepSpeed
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.tables import INCEPTION_FEATURES, PAIRED, PARAMETERS, TRAINED, Value

Check = tuple[tuple[Path, ...], Problem]

_FILE_NAME = 255  # bytes of a file's name
_MLFLOW_NAME = 256  # characters of a name in MLflow's tables


def mistakes(sweep: Sweep, wrong: list[Path]) -> list[Problem]:
    """Return every mistake between parts of the sweep, except those that rest on a value in `wrong`."""
    checks = [
        *_drawn_mistakes(sweep),
        *_batches(sweep),
        *_workers(sweep),
        *_parts(sweep),
        *_compared(sweep),
        *_kept(sweep),
        *_engine(sweep),
        *_grace(sweep),
        *_untrained(sweep),
        *_useless(sweep),
        *_conditions(sweep),
        *_circles(sweep),
        *_nothing(sweep),
        *_steps(sweep),
        *_samples(sweep),
        *_extremes(sweep),
        *_entries(sweep),
        *_pairs(sweep),
        *_names(sweep),
        *_one_predictor(sweep),
    ]
    return _resting_on_right_values(checks, wrong)


def mistakes_in_file(sweep: Sweep, wrong: list[Path]) -> list[Problem]:
    """Return every mistake as `mistakes` does, and those that do not keep a sweep begun earlier from being read."""
    return [*mistakes(sweep, wrong), *_resting_on_right_values(_images(sweep), wrong)]


def _resting_on_right_values(checks: Iterable[Check], wrong: list[Path]) -> list[Problem]:
    return [problem for paths, problem in checks if not any(_touches(path, bad) for path in paths for bad in wrong)]


def _touches(path: Path, bad: Path) -> bool:
    shorter = min(len(path), len(bad))
    return path[:shorter] == bad[:shorter]


def _drawn_mistakes(sweep: Sweep) -> Iterator[Check]:
    """Yield mistakes in what the model is asked to draw."""
    denoiser, prompts, negative = sweep.denoiser, ("denoiser", "prompts"), ("denoiser", "negative_prompt")
    if denoiser.prompts and denoiser.classes:
        allowed = "prompts for a model that reads text, classes for one of classes"
        text = complaint("stands beside denoiser.classes", list(denoiser.prompts), allowed)
        yield (prompts, ("denoiser", "classes")), Problem(prompts, text)
    if denoiser.negative_prompt and denoiser.guidance in (None, 1):
        text = complaint("leads nowhere", denoiser.negative_prompt, "with a denoiser.guidance other than 1")
        yield (negative, ("denoiser", "guidance")), Problem(negative, text)


def _batches(sweep: Sweep) -> Iterator[Check]:
    batch, workers, micro = sweep.train.batch, sweep.resources.workers, sweep.train.micro_batch
    share = ("train", "batch"), ("resources", "gpus_per_trial"), ("resources", "workers")
    if batch % workers:
        allowed = f"a multiple of {workers}, one share for each worker"
        text = complaint("does not split over the workers of a trial", batch, allowed)
        yield share, Problem(("train", "batch"), text)
    elif micro is not None and (batch // workers) % micro:
        of = f"train.batch of {batch}" + (f" over {workers} workers" if workers > 1 else "")
        text = complaint("does not divide a worker's batch", micro, f"a divisor of {batch // workers} ({of})")
        yield (*share, ("train", "micro_batch")), Problem(("train", "micro_batch"), text)


def _workers(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where workers and GPUs of a trial do not match: two workers on one GPU would wait for ever."""
    gpus, workers = sweep.resources.gpus_per_trial, sweep.resources.workers
    each = max(1, int(gpus))
    if gpus and workers != each:
        text = complaint("does not fit the GPUs of a trial", workers, f"{each}, or null: one worker for each GPU")
        yield (("resources", "workers"), ("resources", "gpus_per_trial")), Problem(("resources", "workers"), text)


def _parts(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where weights are partitioned over one worker: it would hold all and copy them for nothing."""
    path, weights = ("gradient", "weights"), sweep.gradient.weights
    if weights == "partitioned" and sweep.resources.workers == 1:
        text = complaint("needs workers to share them", weights, "device or cpu, or resources.workers: 2 or more")
        yield (path, ("resources", "workers"), ("resources", "gpus_per_trial")), Problem(path, text)


def _compared(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where a micro-batch is odd, but a method that trains compares its samples in pairs."""
    size = sweep.train.micro_batch or sweep.train.batch // sweep.resources.workers
    if not sweep.compares_pairs or size % 2 == 0 or any(_batches(sweep)):
        return
    name = "micro_batch" if sweep.train.micro_batch else "batch"
    allowed = "an even number for each worker"
    if "guided" not in sweep.methods:
        allowed += ", or 0 for each of " + ", ".join(f"search.{each}" for each in PAIRED)
    text = complaint("cannot be compared in pairs", size, allowed)
    reads: tuple[Path, ...] = (
        ("train", "batch"),
        ("train", "micro_batch"),
        ("resources", "gpus_per_trial"),
        ("method",),
        *(("search", each) for each in PAIRED),
    )
    yield reads, Problem(("train", name), text)


def _kept(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where `memory` is set for a policy that does not choose how many steps to keep."""
    gradient, path = sweep.gradient, ("gradient", "memory")
    if gradient.memory != "auto" and gradient.policy not in ("auto", "keep_steps"):
        text = f"has no effect with policy {gradient.policy}"
        text = complaint(text, gradient.memory, "auto, or gradient.policy: auto or keep_steps")
        yield (path, ("gradient", "policy")), Problem(path, text)


def _engine(sweep: Sweep) -> Iterator[Check]:
    for name, what, allowed in unworkable(sweep.deepspeed):
        path = ("deepspeed", name)
        text = complaint(what, getattr(sweep.deepspeed, name), allowed)
        yield tuple(("deepspeed", field) for field in DeepSpeed.model_fields), Problem(path, text)


def _one_predictor(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where one predictor is to judge what it found itself."""
    path, second = ("evaluate", "second_predictor"), sweep.evaluate.second_predictor
    if second is not None and second == sweep.predictor:
        text = complaint("is the predictor itself", second, "another one than predictor, or null")
        yield (path, ("predictor",)), Problem(path, text)


def unworkable(engine: DeepSpeed) -> Iterator[tuple[str, str, str]]:
    """Yield (field, what is wrong with it, what is allowed) for each combination that DeepSpeed does not support."""
    optimizer, parameters, zero = engine.offload_optimizer, engine.offload_param, engine.zero
    if optimizer != "none" and zero == 0:
        what = "has no effect with ZeRO-0, which leaves Adam's state in one piece"
        yield "offload_optimizer", what, "none, or deepspeed.zero: 1, 2 or 3"
    elif optimizer == "nvme" and zero < 3:
        what = f"has no effect with ZeRO-{zero}, which offloads to the CPU's memory alone"
        yield "offload_optimizer", what, "none, cpu, or deepspeed.zero: 3"
    if parameters != "none" and zero < 3:
        what = f"has no effect with ZeRO-{zero}, which leaves parameters in one piece"
        yield "offload_param", what, "none, or deepspeed.zero: 3"
    if "nvme" not in (optimizer, parameters) and engine.nvme_path is not None:
        yield "nvme_path", "has no effect where nothing is offloaded to nvme", "null"
    elif "nvme" in (optimizer, parameters) and engine.nvme_path is None:
        yield "nvme_path", "says nowhere to offload to", "a folder on a disk of the machine"


def _grace(sweep: Sweep) -> Iterator[Check]:
    iterations = sweep.train.iterations
    if sweep.scheduler and sweep.scheduler.asha.grace > iterations:
        path = ("scheduler", "asha", "grace")
        allowed = f"at most train.iterations, {iterations}"
        text = complaint("is longer than a trial", sweep.scheduler.asha.grace, allowed)
        yield (path, ("train", "iterations")), Problem(path, text)


def _images(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where trials are compared by fid on no more images than Inception has features."""
    seeds = sweep.evaluate.seeds
    if "fid" not in (*sweep.objective_names, sweep.asha_metric) or 4 * seeds > INCEPTION_FEATURES:
        return
    allowed = f"{INCEPTION_FEATURES // 4 + 1} or more, or inception_kid in place of fid"
    text = complaint(f"fid needs more than {INCEPTION_FEATURES} images, four for each seed", seeds, allowed)
    path = ("evaluate", "seeds")
    yield (path, ("objectives",), ("scheduler", "asha", "metric")), Problem(path, text)


def _untrained(sweep: Sweep) -> Iterator[Check]:
    if sweep.scheduler and not sweep.trained:
        text = f"has no effect with method {_or(sweep.methods)}, which {_do(sweep.methods)} not train"
        text = complaint(text, sweep.scheduler.model_dump(), f"null, or method {_or(TRAINED)} among others")
        yield (("scheduler",), ("method",)), Problem(("scheduler",), text)


def _useless(sweep: Sweep) -> Iterator[Check]:
    for name, distribution in sweep.search.items():
        if not sweep.methods_using(name):
            allowed = f"only with method {_or(PARAMETERS[name].methods)}"
            text = complaint(f"has no effect with method {_or(sweep.methods)}", distribution.resolved(), allowed)
            yield (("method",),), Problem(("search", name), text)


def _conditions(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake for each impossible `when:`: the other parameter must be used, countable and take each value."""
    space = sweep.space
    for name, distribution in sweep.search.items():
        if name not in space:  # reported by _useless
            continue
        for other, wanted in distribution.when.items():
            path = ("search", name, "when", other)
            reads: tuple[Path, ...] = (path, ("method",), ("search", other))
            for text in [*_impossible(other, wanted, space.get(other))] or _apart(sweep, name, other, wanted):
                yield reads, Problem(path, text)


def _impossible(other: str, wanted: tuple[Value, ...], distribution: Distribution | None) -> Iterator[str]:
    if distribution is None:
        yield complaint(f"{other} is not in play with the method of this sweep", list(wanted), "a parameter in play")
        return
    values = countable(distribution)
    if values is None:
        allowed = "a parameter with a choice or an int range"
        yield complaint(f"{other} is continuous and never hits a given value", list(wanted), allowed)
        return
    for value in wanted:
        if value not in values:
            yield complaint(f"{other} never takes this value", value, _listed(values))


def _apart(sweep: Sweep, name: str, other: str, wanted: tuple[Value, ...]) -> Iterator[str]:
    """Yield a message where no method of the sweep has both the parameter `name` and what its condition asks for."""
    users = sweep.methods_using(name)
    if other == "method" and not set(users) & set(wanted):
        which = "only method that uses" if len(users) == 1 else "methods that use"
        yield complaint(f"excludes the {which} {name}", list(wanted), ", ".join(users))
    elif other != "method" and not set(users) & set(sweep.methods_using(other)):
        yield complaint(f"{other} is never in play with {name}", list(wanted), f"a parameter of method {_or(users)}")


def _listed(values: Sequence[Value]) -> str:
    if isinstance(values, range):
        return f"{values[0]} to {values[-1]}" + (f" in steps of {values.step}" if values.step > 1 else "")
    return ", ".join(value if isinstance(value, str) else shown(value) for value in values)


def _circles(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake for each circle of conditions, once, at its first name in the alphabet."""
    for name in sorted(sweep.search):
        circle = _circle(sweep.search, [name], set())
        if circle and name == min(circle):
            path = ("search", name, "when")
            text = f"waits for itself: {' -> '.join([*circle, name])}; allowed: conditions without a circle"
            yield tuple(("search", other) for other in circle), Problem(path, text)


def _circle(search: dict[str, Distribution], trail: list[str], seen: set[str]) -> list[str] | None:
    """Return a circle that leads back to the first name of `trail`, or None.

    seen: names that are on the trail, or lead only to names on the trail.
    """
    seen.add(trail[-1])
    for other in search.get(trail[-1], Fixed(0)).when:
        if other == trail[0]:
            return trail
        if other not in seen and (circle := _circle(search, [*trail, other], seen)):
            return circle
    return None


def _nothing(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where a method that has much to search is to search nothing; the others have one trial then."""
    if (
        sweep.trained
        and sweep.budget.trials > 1
        and all(_settled(distribution) for distribution in sweep.space.values())
    ):
        text = complaint(
            "nothing is searched, so every trial would be the same",
            {name: distribution.resolved() for name, distribution in sweep.search.items()},
            "at least one parameter with choice, int or float, or budget.trials: 1",
        )
        yield (("search",), ("method",), ("budget", "trials")), Problem(("search",), text)


def _steps(sweep: Sweep) -> Iterator[Check]:
    steps, ends = sweep.sampler.steps, _ends(sweep, "jacobian.step", "jacobian")
    if ends and ends[1] >= steps:
        path = ("search", "jacobian.step")
        text = complaint(
            "is not a step of the chain", ends[1], f"0 to {steps - 1} (sampler.steps is {steps}), middle, every"
        )
        yield (path, ("sampler", "steps"), ("method",)), Problem(path, text)


def _samples(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where a method has too few samples: N samples vary in N - 1 dimensions."""
    for method in ("pca", "semantic"):
        samples, directions = _ends(sweep, f"{method}.samples", method), _ends(sweep, "directions", method)
        if samples and directions and samples[0] <= directions[1]:
            path = ("search", f"{method}.samples")
            text = complaint(f"is too few for {directions[1]} directions", samples[0], f"at least {directions[1] + 1}")
            yield (path, ("search", "directions"), ("method",)), Problem(path, text)


def _extremes(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where the highest and the lowest samples of an attribute would overlap."""
    samples, extremes = (_ends(sweep, f"supervised.{name}", "supervised") for name in ("samples", "extremes"))
    if samples and extremes and 2 * extremes[1] > samples[0]:
        path = ("search", "supervised.extremes")
        allowed = f"at most {samples[0] // 2}, half of supervised.samples"
        text = complaint("is more than half of the samples", extremes[1], allowed)
        yield (path, ("search", "supervised.samples"), ("method",)), Problem(path, text)


def _entries(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where a dictionary would have fewer entries than directions, or than a row is made of."""
    width = _ends(sweep, "sae.width", "sae")
    for name in ("directions", "sae.active"):
        asked = _ends(sweep, name, "sae")
        if width and asked and width[0] < asked[1]:
            path = ("search", "sae.width")
            text = complaint(f"is less than {name}", width[0], f"at least {asked[1]}")
            yield (path, ("search", name), ("method",)), Problem(path, text)


def _pairs(sweep: Sweep) -> Iterator[Check]:
    """Yield a mistake where a stochastic chain is to invert real images: only a deterministic one can be inverted."""
    folders = [folder for folder in countable(sweep.distribution_of("supervised.pairs")) or () if folder != "none"]
    if "supervised" in sweep.methods and folders and sweep.sampler.eta:
        text = complaint(
            "needs a chain that can be inverted", folders[0], f"sampler.eta: 0 (it is {sweep.sampler.eta:g})"
        )
        path = ("search", "supervised.pairs")
        yield (path, ("sampler", "eta"), ("method",)), Problem(path, text)


def _names(sweep: Sweep) -> Iterator[Check]:
    """Yield mistakes in names: the embedded store uses them as folders, MLflow as parts of addresses and of queries."""
    name, path = sweep.tracking.experiment or "", ("tracking", "experiment")
    if sweep.tracking.uri is None:
        if name in (".", "..") or set(name) & set("/\\") or len(name) > 100 or len(name.encode()) > _FILE_NAME:
            allowed = f"at most 100 characters ({_FILE_NAME} bytes) without / and \\, not . or .., or a tracking.uri"
            text = complaint("cannot be a folder of the embedded store", name, allowed)
            yield (path, ("tracking", "uri")), Problem(path, text)
    elif len(name) > _MLFLOW_NAME:
        text = complaint("cannot name an experiment", name, f"at most {_MLFLOW_NAME} characters")
        yield (path, ("tracking", "uri")), Problem(path, text)
    name, path = sweep.export.register_as or "", ("export", "register")
    # A model is loaded from models:/NAME@champion, and found by a name between quotes of one kind.
    if (
        set(name) & set("/:?")
        or set(name) >= {"'", '"'}
        or name == "."
        or name.startswith("..")
        or len(name) > _MLFLOW_NAME
    ):
        allowed = f"at most {_MLFLOW_NAME} characters without /, : and ?, with one kind of quotes, not . or begun by .."
        yield (path,), Problem(path, complaint("cannot name a model", name, allowed))


def _ends(sweep: Sweep, name: str, method: str) -> tuple[int, int] | None:
    """Return the least and the greatest integer that a parameter takes with `method`, or None.

    None: the method is not used, the parameter is continuous, or its condition names another parameter.
    """
    distribution = sweep.distribution_of(name)
    waits = distribution.when.keys() - {"method"} or method not in distribution.when.get("method", (method,))
    values = countable(distribution)
    if values is None or waits or method not in sweep.methods:
        return None
    ends = (values[0], values[-1]) if isinstance(values, range) else values
    whole = [value for value in ends if isinstance(value, int)]
    return (min(whole), max(whole)) if whole else None


def _or(words: Sequence[str]) -> str:
    return " or ".join(words)


def _do(words: Sequence[str]) -> str:
    return "does" if len(words) == 1 else "do"


def _settled(distribution: Distribution) -> bool:
    values = countable(distribution)
    return values is not None and len(values) == 1
