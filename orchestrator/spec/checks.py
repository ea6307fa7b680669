"""What must hold between the parts of a sweep. Each check names the paths it reads, and rests while one is wrong."""

from collections.abc import Iterator, Sequence

from orchestrator.spec.distributions import Distribution, Fixed, countable
from orchestrator.spec.problems import Path, Problem, complaint, shown
from orchestrator.spec.sweep import Sweep
from orchestrator.spec.tables import PARAMETERS, Value

Check = tuple[tuple[Path, ...], Problem]


def mistakes(sweep: Sweep, wrong: list[Path]) -> list[Problem]:
    """Every mistake between parts of the sweep, but for those that rest on a value already known to be wrong."""
    found = [
        *_batches(sweep),
        *_grace(sweep),
        *_useless(sweep),
        *_conditions(sweep),
        *_circles(sweep),
        *_nothing(sweep),
    ]
    return [problem for paths, problem in found if not any(_touches(path, bad) for path in paths for bad in wrong)]


def _touches(path: Path, bad: Path) -> bool:
    shorter = min(len(path), len(bad))
    return path[:shorter] == bad[:shorter]


def _batches(sweep: Sweep) -> Iterator[Check]:
    batch, workers, micro = sweep.train.batch, sweep.resources.workers, sweep.train.micro_batch
    share = ("train", "batch"), ("resources", "gpus_per_trial")
    if batch % workers:
        allowed = f"a multiple of {workers}, one share for each GPU"
        yield share, Problem(("train", "batch"), complaint("does not split over the GPUs of a trial", batch, allowed))
    elif micro is not None and (batch // workers) % micro:
        of = f"train.batch of {batch}" + (f" over {workers} GPUs" if workers > 1 else "")
        text = complaint("does not divide a worker's batch", micro, f"a divisor of {batch // workers} ({of})")
        yield (*share, ("train", "micro_batch")), Problem(("train", "micro_batch"), text)


def _grace(sweep: Sweep) -> Iterator[Check]:
    iterations = sweep.train.iterations
    if sweep.scheduler and sweep.scheduler.asha.grace > iterations:
        path = ("scheduler", "asha", "grace")
        allowed = f"at most train.iterations, {iterations}"
        text = complaint("is longer than a trial", sweep.scheduler.asha.grace, allowed)
        yield (path, ("train", "iterations")), Problem(path, text)


def _useless(sweep: Sweep) -> Iterator[Check]:
    for name, given in sweep.search.items():
        if PARAMETERS[name].learned_only and "learned" not in sweep.methods:
            text = complaint(
                f"has no effect with method {sweep.methods[0]}", given.resolved(), "only with method learned"
            )
            yield (("method",),), Problem(("search", name), text)


def _conditions(sweep: Sweep) -> Iterator[Check]:
    """A `when:` must be possible: the other parameter is in play, countable, and takes each of the values."""
    space = sweep.space
    for name, given in sweep.search.items():
        if name not in space:  # told by _useless
            continue
        for other, wanted in given.when.items():
            path = ("search", name, "when", other)
            reads: tuple[Path, ...] = (path, ("method",), ("search", other))
            if other == "method" and PARAMETERS[name].learned_only and "learned" not in wanted:
                text = complaint(f"excludes the only method that uses {name}", list(wanted), "learned")
                yield reads, Problem(path, text)
                continue
            for text in _impossible(other, wanted, space.get(other)):
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


def _listed(values: Sequence[Value]) -> str:
    if isinstance(values, range):
        return f"{values[0]} to {values[-1]}" + (f" in steps of {values.step}" if values.step > 1 else "")
    return ", ".join(value if isinstance(value, str) else shown(value) for value in values)


def _circles(sweep: Sweep) -> Iterator[Check]:
    """Parameters that wait for each other; each circle is told once, from its first name in the alphabet."""
    for name in sorted(sweep.search):
        circle = _circle(sweep.search, [name])
        if circle and name == min(circle):
            path = ("search", name, "when")
            text = f"waits for itself: {' -> '.join([*circle, name])}; allowed: conditions without a circle"
            yield tuple(("search", other) for other in circle), Problem(path, text)


def _circle(search: dict[str, Distribution], trail: list[str]) -> list[str] | None:
    for other in search.get(trail[-1], Fixed(0)).when:
        if other == trail[0]:
            return trail
        if other not in trail and (found := _circle(search, [*trail, other])):
            return found
    return None


def _nothing(sweep: Sweep) -> Iterator[Check]:
    if sweep.budget.trials > 1 and all(_settled(given) for given in sweep.space.values()):
        text = complaint(
            "nothing is searched, so every trial would be the same",
            {name: given.resolved() for name, given in sweep.search.items()},
            "at least one parameter with choice, int or float, or budget.trials: 1",
        )
        yield (("search",), ("method",), ("budget", "trials")), Problem(("search",), text)


def _settled(distribution: Distribution) -> bool:
    values = countable(distribution)
    return values is not None and len(values) == 1
