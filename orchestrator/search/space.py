"""Present a sweep's search space to Optuna, define-by-run: a parameter whose `when:` fails is absent."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import optuna

from orchestrator.spec import Choice, Distribution, Fixed, FloatRange, IntRange, Sweep, Value, countable

Space = Mapping[str, Distribution]  # Sweep.space

_CASES = 50_000  # counted in about a second


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> dict[str, Value]:
    """Return one configuration: every active parameter with its value, constants included.

    Optuna proposes only the searched parameters; constants are not in `trial.params`.
    """
    chosen: dict[str, Value] = {}
    for name in ordered(space):
        if _active(space[name], chosen):
            chosen[name] = _value(trial, name, space[name])
    return chosen


def sample(space: Space, count: int, seed: int) -> list[dict[str, Value]]:
    """Return `count` configurations drawn at random; the same for the same seed."""
    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [suggest(study.ask(), space) for _ in range(count)]


def size(space: Space) -> int | None:
    """Return how many different configurations the space holds; None where a continuous parameter can be active.

    Also None where conditions distinguish more than `_CASES` cases, which a space of few configurations cannot have.
    """
    return _Counting(space).count(0, {})


def configurations(space: Space) -> list[dict[str, Value]]:
    """Return every configuration of a finite space, constants included; the values of its first names change last.

    Raises ValueError where a continuous parameter can be active.
    """
    return list(_every(space, ordered(space), {}))


def searched(space: Space) -> list[str]:
    """Return the names of the parameters that are no constants, which Optuna chooses."""
    return [name for name, values in space.items() if not isinstance(values, Fixed)]


def fits(sweep: Sweep) -> bool:
    """Return whether every configuration of the space gets a trial within the budget; then each gets exactly one."""
    count = size(sweep.space)
    return count is not None and count <= sweep.budget.trials


def trials(sweep: Sweep) -> int:
    """Return the number of trials: the budget, or the number of configurations where that is smaller."""
    count = size(sweep.space)
    return sweep.budget.trials if count is None else min(count, sweep.budget.trials)


def ordered(space: Space) -> list[str]:
    """Return the names, each after those in its `when:`, otherwise in the order of the space.

    Raises ValueError where conditions refer to each other in a circle.
    """
    names: list[str] = []
    waiting = list(space)
    while waiting:
        ready = next((name for name in waiting if all(other in names for other in space[name].when)), None)
        if ready is None:
            raise ValueError(f"conditions without an order among: {', '.join(waiting)}")
        names.append(ready)
        waiting.remove(ready)
    return names


def with_constants(parameters: Mapping[str, Value], space: Space) -> dict[str, Value]:
    """Return a trial's parameters with the constants, which a study does not store."""
    values: dict[str, Value] = {}
    for name in ordered(space):
        distribution = space[name]
        if name in parameters:
            values[name] = parameters[name]
        elif isinstance(distribution, Fixed) and _active(distribution, values):
            values[name] = distribution.value
    return values


def _active(distribution: Distribution, chosen: Mapping[str, Value | None]) -> bool:
    """Return whether every condition holds. An inactive parameter has no value: what depends on it is inactive too."""
    return all(chosen.get(other) in wanted for other, wanted in distribution.when.items())


def _value(trial: optuna.trial.BaseTrial, name: str, distribution: Distribution) -> Value:
    match distribution:
        case Fixed(value):
            return value
        case Choice(values):
            return cast(Value, trial.suggest_categorical(name, values))
        case IntRange(low, high, step, log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatRange(low, high, log):
            return trial.suggest_float(name, low, high, log=log)


def _every(space: Space, names: Sequence[str], chosen: dict[str, Value]) -> Iterator[dict[str, Value]]:
    """Yield the configurations that extend `chosen` by values of `names`."""
    if not names:
        yield chosen
        return
    name, rest = names[0], names[1:]
    if not _active(space[name], chosen):
        yield from _every(space, rest, chosen)
        return
    values = countable(space[name])
    if values is None:
        raise ValueError(f"{name} is continuous: its configurations cannot be listed")
    for value in values:
        yield from _every(space, rest, {**chosen, name: value})


class _Counting:
    """The number of configurations of a space, where each case that its conditions distinguish is counted once."""

    def __init__(self, space: Space) -> None:
        self.space, self.names = space, ordered(space)
        self.named_values = {name: self._named_values(name) for name in self.names}
        self.later = [{other for name in self.names[k:] for other in space[name].when} for k in range(len(self.names))]
        self.known: dict[object, int | None] = {}

    def _named_values(self, name: str) -> set[Value]:
        """Return the values of a parameter that some condition names."""
        values = countable(self.space[name])
        wanted = {value for other in self.space.values() for value in other.when.get(name, ())}
        return wanted.intersection(values) if isinstance(values, tuple) else {v for v in wanted if v in (values or ())}

    def count(self, k: int, chosen: Mapping[str, Value | None]) -> int | None:
        """Return the number of configurations of the names from the k-th on, given the values chosen before."""
        if k == len(self.names):
            return 1
        case = k, frozenset(item for item in chosen.items() if item[0] in self.later[k])
        if case not in self.known:
            self.known[case] = self._counted(k, chosen) if len(self.known) < _CASES else None
        return self.known[case]

    def _counted(self, k: int, chosen: Mapping[str, Value | None]) -> int | None:
        name = self.names[k]
        if not _active(self.space[name], chosen):
            return self.count(k + 1, chosen)
        values, conditions = countable(self.space[name]), self.named_values[name]
        if values is None:
            return None
        total = 0
        # Only values in a condition change what follows; all other values (None) are counted together.
        for value, times in [*((value, 1) for value in conditions), (None, len(values) - len(conditions))]:
            below = self.count(k + 1, {**chosen, name: value}) if times else 0
            if below is None:
                return None
            total += times * below
        return total


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log line for every new study."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
