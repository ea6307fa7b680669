"""`Sweep`: a whole sweep file as one frozen value, with its search space and its identity."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from typing import Annotated, Any

from orchestrator.spec.distributions import (
    Choice,
    Distribution,
    Fixed,
    countable,
    read_distribution,
    read_method,
    unknown_key,
)
from orchestrator.spec.domains import Domain, OrNull, Slug, Text, Whole
from orchestrator.spec.model_use import ModelUse
from orchestrator.spec.problems import MistakeCollector, Problem, Refused, complaint
from orchestrator.spec.reading import without
from orchestrator.spec.sections import (
    Budget,
    Cluster,
    DeepSpeed,
    Evaluate,
    Export,
    Gradient,
    Metric,
    Recovery,
    Resources,
    Sampler,
    Scheduler,
    Section,
    Study,
    Tracking,
    Train,
)
from orchestrator.spec.tables import METHODS, METRICS, PAIRED, PARAMETERS, TRAINED, Mode, Value

# Part of every identity. Raise it when the meaning of a sweep file or of a metric changes.
SCHEMA_VERSION = 7

# The keys that say how results are computed; they change results by rounding alone. They are no part of the identity,
# so that a sweep keeps its trials when they change, for example after it ran out of memory, or on another device.
KEYS_WITHOUT_EFFECT_ON_RESULTS = (
    *((section,) for section in ("gradient", "recovery", "study", "resources", "cluster")),
    ("train", "micro_batch"),
    ("sampler", "batch"),
    ("tracking", "system_metrics"),
    *(("deepspeed", key) for key in ("zero", "offload_optimizer", "offload_param", "nvme_path")),
)


# The keys that decide which trials there are and what is done with them, but not the result of one trial.
SWEEP_ONLY_KEYS = (
    *((key,) for key in ("name", "method", "search", "objectives", "scheduler", "budget")),
    *((key,) for key in ("tracking", "export")),
    ("evaluate", "every"),
)


@dataclass(frozen=True)
class Objective:
    """A metric, and whether larger or smaller values of it are better."""

    metric: str
    mode: Mode


class _Method(Domain):
    def __str__(self) -> str:
        return f"{', '.join(METHODS)}, or a mapping with choice"

    def check(self, value: object) -> Fixed | Choice:
        """Return the method, or the choice of methods. Raises as `read_method` does."""
        return read_method(value)


class _Search(Domain):
    def __str__(self) -> str:
        return "a mapping of parameters to their values"

    def check(self, value: object) -> dict[str, Distribution]:
        """Return the distribution of each searched parameter. Raises Refused, with every mistake at once."""
        if value is not None and not isinstance(value, Mapping):
            self.refuse("is not a mapping", value)
        mistakes = MistakeCollector()
        search: dict[str, Distribution] = {}
        for name, item in (value or {}).items():
            if name not in PARAMETERS:
                mistakes.add(unknown_key(name, item, tuple(PARAMETERS)), str(name))
                continue
            distribution = mistakes.check(partial(read_distribution, name=name), item, name)
            if distribution is not None:
                search[name] = distribution
        mistakes.raise_if_any()
        return search


class _Objectives(Domain):
    def __str__(self) -> str:
        return "a list of one to four {metric: max or min}"

    def check(self, value: object) -> tuple[Objective, ...]:
        """Return the objectives. Raises Refused, with every mistake at once."""
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= 4:
            self.refuse("is not a list of objectives", value)
        mistakes = MistakeCollector()
        objectives: list[Objective] = []
        for index, item in enumerate(value):
            objective = mistakes.check(self._objective, item, index)
            if objective in objectives:
                mistakes.add(complaint("is given twice", item, "each metric once"), index)
            elif objective:
                objectives.append(objective)
        mistakes.raise_if_any()
        return tuple(objectives)

    def _objective(self, item: object) -> Objective:
        if not isinstance(item, Mapping) or len(item) != 1:
            _OneObjective().refuse("is not an objective", item)
        [(metric, mode)] = item.items()
        natural = Metric().check(metric)
        if mode != METRICS[natural]:
            text = complaint("is not the direction of this metric", mode, METRICS[natural])
            raise Refused([Problem((natural,), text)])
        return Objective(natural, METRICS[natural])


class _OneObjective(Domain):
    def __str__(self) -> str:
        return "{metric: max or min}"


class Sweep(Section):
    """A validated sweep file. `load` and `parse` make it, and also check that its parts fit each other.

    `predictor` names the network that scores attributes of images; null is the one that ships with an embedded model.
    """

    name: Annotated[str, Slug()]
    model: Annotated[str, Text()]
    predictor: Annotated[str | None, OrNull(Text())] = None
    method: Annotated[Fixed | Choice, _Method()] = Fixed("learned")
    seed: Annotated[int, Whole(0, 2**32 - 1)] = 0
    denoiser: ModelUse = ModelUse()
    sampler: Sampler = Sampler()
    train: Train = Train()
    search: Annotated[dict[str, Distribution], _Search()] = {}
    objectives: Annotated[tuple[Objective, ...], _Objectives()] = (Objective("factor_score", "max"),)
    scheduler: Scheduler | None = None
    budget: Budget = Budget()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    deepspeed: DeepSpeed = DeepSpeed()
    gradient: Gradient = Gradient()
    recovery: Recovery = Recovery()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()
    study: Study = Study()
    export: Export = Export()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that trials may use."""
        return tuple(str(method) for method in countable(self.method) or ())

    @property
    def trained(self) -> tuple[str, ...]:
        """The methods of this sweep that train."""
        return tuple(method for method in self.methods if method in TRAINED)

    @property
    def space(self) -> dict[str, Distribution]:
        """The method and every parameter that some method of this sweep uses, with defaults as `Fixed`.

        A parameter that only some of the methods use has them as its `when`.
        """
        space: dict[str, Distribution] = {"method": self.method}
        for name in PARAMETERS:
            if users := self.methods_using(name):
                distribution = self.distribution_of(name)
                space[name] = distribution if users == self.methods else _only_for(users, distribution)
        return space

    def distribution_of(self, name: str) -> Distribution:
        """Return the file's distribution of a parameter, or its default."""
        return self.search.get(name, Fixed(self._default(name)))

    def possible_values(self, name: str, method: str) -> Sequence[Value] | None:
        """Return every value that a parameter may have in a trial of `method`, or None for a continuous one.

        Where the parameter's `when` does not hold, its value is the default.
        """
        distribution, default = self.distribution_of(name), self._default(name)
        if method not in distribution.when.get("method", (method,)):
            return (default,)
        values = countable(distribution)
        return values if values is None or distribution.when.keys() <= {"method"} else (*values, default)

    def _default(self, name: str) -> Value:
        default = PARAMETERS[name].default
        own: Value = getattr(self, name) if default is None else default
        return own

    def _has_own_key(self, name: str) -> bool:
        """Return whether a resolved sweep gives the parameter by a key of its own, outside of `search`.

        These are the method, and the seed unless it is searched or differs from the sweep's.
        """
        if name == "method":
            return True
        return PARAMETERS[name].default is None and self.distribution_of(name) == Fixed(getattr(self, name))

    def methods_using(self, name: str) -> tuple[str, ...]:
        """Return the methods of this sweep that use a parameter."""
        return tuple(method for method in self.methods if method in PARAMETERS[name].methods)

    @property
    def objective_names(self) -> list[str]:
        """The metrics that are optimised, in order."""
        return [objective.metric for objective in self.objectives]

    @property
    def micro_batches(self) -> tuple[int, ...]:
        """The possible numbers of samples that one worker runs at a time, largest first.

        These are the divisors of its share of the batch; only even ones where samples are compared in pairs.
        """
        share = self.train.batch // self.resources.workers
        odd = not self.compares_pairs
        small = [size for size in range(1, isqrt(share) + 1) if share % size == 0]
        divisors = sorted({*small, *(share // size for size in small)}, reverse=True)
        return tuple(size for size in divisors if odd or size % 2 == 0)

    @property
    def compares_pairs(self) -> bool:
        """Whether some trial of a method that trains compares the samples of a micro-batch in pairs."""
        weights = [self.possible_values(name, "learned") for name in PAIRED]
        learned = "learned" in self.methods and any(each is None or any(each) for each in weights)
        return learned or "guided" in self.methods

    @property
    def evaluate_every(self) -> int:
        """The iterations between measurements; by default ASHA's grace, or without ASHA all iterations of a trial."""
        return self.evaluate.every or (self.scheduler.asha.grace if self.scheduler else self.train.iterations)

    @property
    def asha_metric(self) -> str | None:
        """The metric that ASHA compares, by default the first objective; None without ASHA."""
        return (self.scheduler.asha.metric or self.objectives[0].metric) if self.scheduler else None

    @property
    def asha_mode(self) -> Mode | None:
        """Whether larger or smaller values of `asha_metric` are better; None without ASHA."""
        return METRICS[self.asha_metric] if self.asha_metric else None

    @property
    def checkpoint_metric(self) -> tuple[str, Mode]:
        """The metric by which a trial's own checkpoints are compared, and whether larger or smaller is better."""
        metric = self.asha_metric or self.objectives[0].metric
        return metric, METRICS[metric]

    @property
    def experiment(self) -> str:
        """The experiment under which the runs are recorded."""
        return self.tracking.experiment or self.name

    def resolved(self) -> dict[str, Any]:
        """Return the sweep as plain JSON, with all default and derived values; itself a valid sweep file."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"method", "search", "objectives"})
        plain["method"] = self.method.resolved()
        plain["search"] = {
            name: self.distribution_of(name).resolved() for name in self.space if not self._has_own_key(name)
        }
        plain["objectives"] = [{objective.metric: objective.mode} for objective in self.objectives]
        plain["evaluate"]["every"] = self.evaluate_every
        plain["tracking"]["experiment"] = self.experiment
        if plain["scheduler"]:
            plain["scheduler"]["asha"]["metric"] = self.asha_metric
        return plain

    def identity(self) -> str:
        """Return the SHA-256 of the schema version and all that decides results: the same for equivalent files."""
        return _digest({"schema": SCHEMA_VERSION, "sweep": result_keys(self.resolved())})

    def trial_key(self, parameters: Mapping[str, Any], weights: str) -> str:
        """Return the SHA-256 of all values that decide one trial's result: trials with one key are the same trial.

        parameters: of the trial, constants included; weights: the digest of the model's weights.
        """
        trial = without(result_keys(self.resolved()), SWEEP_ONLY_KEYS)
        return _digest({"schema": SCHEMA_VERSION, "trial": trial, "parameters": dict(parameters), "weights": weights})


def result_keys(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved sweep without `KEYS_WITHOUT_EFFECT_ON_RESULTS`."""
    return without(dict(resolved), KEYS_WITHOUT_EFFECT_ON_RESULTS)


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _only_for(methods: tuple[str, ...], distribution: Distribution) -> Distribution:
    """Return the distribution with `methods` as a further condition."""
    wanted = distribution.when.get("method", methods)
    method: tuple[Value, ...] = tuple(user for user in methods if user in wanted)
    return replace(distribution, when={**distribution.when, "method": method})
