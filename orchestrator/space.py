"""A sweep's search space as Optuna sees it: define-by-run, so that a parameter whose `when:` fails is simply absent."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import optuna

from orchestrator.spec import Choice, Distribution, Fixed, FloatRange, IntRange, Value, countable

Space = Mapping[str, Distribution]  # Sweep.space


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Value]:
    """One configuration: every active parameter with its value, constants included.

    Optuna is asked only about what is searched; constants are not among `trial.params`.
    """
    chosen: dict[str, Value] = {}
    for name in ordered(space):
        if _active(space[name], chosen):
            chosen[name] = _value(trial, name, space[name])
    return chosen


def sample(space: Space, count: int, seed: int) -> list[dict[str, Value]]:
    """`count` configurations drawn at random; the same for the same seed."""
    with _quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [suggest(study.ask(), space) for _ in range(count)]


def size(space: Space) -> int | None:
    """How many different configurations the space holds, or None where a continuous parameter can be active."""
    return _count(space, ordered(space), {})


def ordered(space: Space) -> list[str]:
    """The names, each after those that its `when:` asks about, otherwise in the order of the space."""
    names: list[str] = []
    waiting = list(space)
    while waiting:
        ready = next((name for name in waiting if all(other in names for other in space[name].when)), None)
        if ready is None:
            raise ValueError(f"conditions without an order among: {', '.join(waiting)}")
        names.append(ready)
        waiting.remove(ready)
    return names


def _active(distribution: Distribution, chosen: Mapping[str, Value | None]) -> bool:
    """Does every condition hold? An inactive parameter has no value, so whatever waits for it is inactive too."""
    return all(chosen.get(other) in wanted for other, wanted in distribution.when.items())


def _value(trial: optuna.Trial, name: str, distribution: Distribution) -> Value:
    match distribution:
        case Fixed(value):
            return value
        case Choice(values):
            return cast(Value, trial.suggest_categorical(name, values))
        case IntRange(low, high, step, log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatRange(low, high, log):
            return trial.suggest_float(name, low, high, log=log)


def _count(space: Space, names: Sequence[str], chosen: Mapping[str, Value | None]) -> int | None:
    """Configurations of `names`, given what was chosen before them."""
    if not names:
        return 1
    name, rest = names[0], names[1:]
    if not _active(space[name], chosen):
        return _count(space, rest, chosen)
    values = countable(space[name])
    if values is None:
        return None
    asked = {value for other in space.values() for value in other.when.get(name, ()) if value in values}
    total = 0
    # Only values that a condition asks about lead to different rests; all others (None) are counted in one go.
    for value, times in [*((value, 1) for value in asked), (None, len(values) - len(asked))]:
        below = _count(space, rest, {**chosen, name: value}) if times else 0
        if below is None:
            return None
        total += times * below
    return total


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's line for every new study."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
