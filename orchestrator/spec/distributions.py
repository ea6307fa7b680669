"""Read the search section: which values a parameter may take, and under which condition (`when:`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from orchestrator.spec.domains import Domain, OrWord, Real, Truth, Whole
from orchestrator.spec.problems import MistakeCollector, Problem, Refused, complaint, nearest, shown
from orchestrator.spec.tables import DOMAINS, Value

When = Mapping[str, tuple[Value, ...]]  # every named parameter must have one of these values

_MODIFIERS = {"choice": ("when",), "int": ("step", "log", "when"), "float": ("log", "when")}


@dataclass(frozen=True)
class Fixed:
    """A parameter with one constant value."""

    value: Value
    when: When = field(default_factory=dict)

    def resolved(self) -> Any:
        """Return the distribution as plain data, as in a sweep file."""
        return self.value


@dataclass(frozen=True)
class Choice:
    """A parameter with one of a few values."""

    values: tuple[Value, ...]
    when: When = field(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """Return the distribution as plain data, as in a sweep file."""
        return {"choice": list(self.values), **_plain(self.when)}


@dataclass(frozen=True)
class IntRange:
    """A parameter with one of the integers low, low + step, ... high."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    when: When = field(default_factory=dict)

    @property
    def values(self) -> range:
        """Every value of the range."""
        return range(self.low, self.high + 1, self.step)

    def resolved(self) -> dict[str, Any]:
        """Return the distribution as plain data, as in a sweep file."""
        return {"int": [self.low, self.high], "step": self.step, "log": self.log, **_plain(self.when)}


@dataclass(frozen=True)
class FloatRange:
    """A parameter with any number from low to high."""

    low: float
    high: float
    log: bool = False
    when: When = field(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """Return the distribution as plain data, as in a sweep file."""
        return {"float": [self.low, self.high], "log": self.log, **_plain(self.when)}


Distribution = Fixed | Choice | IntRange | FloatRange


def countable(distribution: Distribution) -> Sequence[Value] | None:
    """Return every value that the distribution can take, or None for a continuous one."""
    match distribution:
        case Fixed(value):
            return (value,)
        case FloatRange():
            return None
        case Choice() | IntRange():
            return distribution.values


def read_method(value: object) -> Fixed | Choice:
    """Return the method of a sweep: one, or a choice of several. It depends on nothing, so it takes no `when`."""
    if not isinstance(value, Mapping):
        return Fixed(DOMAINS["method"].check(value))
    _refuse_unknown_keys(value, ("choice",))
    return Choice(_choice(value.get("choice"), DOMAINS["method"]))


def read_distribution(value: object, name: str) -> Distribution:
    """Return the values of the parameter `name` from the file's `value`. Raises Refused with every mistake."""
    domain = DOMAINS[name]
    if not isinstance(value, Mapping):
        return Fixed(domain.check(value))
    numbers = domain.domain if isinstance(domain, OrWord) else domain  # of the ends of a range
    kind = _kind(value, _kinds(numbers))
    mistakes = MistakeCollector()
    when = mistakes.check(_when, value.get("when", {}), "when") or {}
    match kind:
        case "choice":
            values = mistakes.check(partial(_choice, domain=domain), value[kind])
            mistakes.raise_if_any()
            return Choice(values or (), when)
        case "int":
            return _int_range(value, numbers, when, mistakes)
        case _:
            return _float_range(value, numbers, when, mistakes)


def _kinds(domain: Domain) -> tuple[str, ...]:
    if isinstance(domain, Whole):
        return "choice", "int"
    return ("choice", "float") if isinstance(domain, Real) else ("choice",)


def _kind(value: Mapping[Any, Any], kinds: tuple[str, ...]) -> str:
    """Return the one key that says how to draw. Raises Refused where a key does not fit it."""
    named = [kind for kind in _MODIFIERS if kind in value]
    if len(named) > 1:
        _refuse(complaint(f"mixes {' and '.join(named)}", value, f"one of {', '.join(kinds)}"))
    if named and named[0] not in kinds:
        _refuse(complaint(f"cannot be searched as {named[0]}", value, ", ".join(kinds)))
    _refuse_unknown_keys(value, (*named, *_MODIFIERS[named[0]]) if named else (*kinds, *_MODIFIERS[kinds[-1]]))
    if not named:
        _refuse(
            complaint("does not say which values to search", value, f"a value, or a mapping with {' or '.join(kinds)}")
        )
    return named[0]


def _choice(listed: object, domain: Domain) -> tuple[Value, ...]:
    if not isinstance(listed, list | tuple):
        _refuse(complaint("is not a list", listed, "a list of values"), "choice")
    if not listed:
        _refuse(complaint("is an empty search space", listed, "a list of one value or more"), "choice")
    mistakes = MistakeCollector()
    values: list[Value] = []
    for index, item in enumerate(listed):
        value = mistakes.check(domain.check, item, "choice", index)
        if value is not None and value in values:
            mistakes.add(complaint("is given twice", item, "each value once"), "choice", index)
        elif value is not None:
            values.append(value)
    mistakes.raise_if_any()
    return tuple(values)


def _int_range(value: Mapping[str, object], domain: Domain, when: When, mistakes: MistakeCollector) -> IntRange:
    ends = mistakes.check(partial(_ends, domain=domain), value["int"], "int")
    step = mistakes.check(Whole(1).check, value.get("step", 1), "step") or 1
    log = mistakes.check(Truth().check, value.get("log", False), "log") or False
    if log and step != 1:
        mistakes.add(complaint("cannot go with log", step, "step 1, or log: false"), "step")
    elif ends and (ends[1] - ends[0]) % step:
        mistakes.add(complaint("does not lead from low to high", step, f"a divisor of {ends[1] - ends[0]}"), "step")
    _settle_log(log, ends, mistakes)
    low, high = ends or (0, 0)
    return IntRange(low, high, step, log, when)


def _float_range(value: Mapping[str, object], domain: Domain, when: When, mistakes: MistakeCollector) -> FloatRange:
    ends = mistakes.check(partial(_ends, domain=domain), value["float"], "float")
    log = mistakes.check(Truth().check, value.get("log", False), "log") or False
    _settle_log(log, ends, mistakes)
    low, high = ends or (0.0, 0.0)
    return FloatRange(low, high, log, when)


def _settle_log(log: bool, ends: tuple[Any, Any] | None, mistakes: MistakeCollector) -> None:
    if log and ends and ends[0] <= 0:
        mistakes.add(complaint("needs a low end above 0", ends[0], "low > 0, or log: false"), "log")
    mistakes.raise_if_any()


def _ends(value: object, domain: Domain) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        _refuse(complaint("is not a range", value, "[low, high]"))
    mistakes = MistakeCollector()
    low: Any = mistakes.check(domain.check, value[0], 0)
    high: Any = mistakes.check(domain.check, value[1], 1)
    mistakes.raise_if_any()
    if low == high:
        _refuse(complaint("is an empty range", value, "[low, high] with low < high, or one value without brackets"))
    if low > high:
        _refuse(complaint("is upside down", value, "[low, high] with low < high"))
    return low, high


def _when(conditions: object) -> When:
    """Return the condition, with each value in the form that the other parameter has."""
    if not isinstance(conditions, Mapping):
        _refuse(complaint("is not a mapping", conditions, "{other parameter: value or list of values}"))
    mistakes = MistakeCollector()
    when: dict[str, tuple[Value, ...]] = {}
    for other, values in conditions.items():
        if other not in DOMAINS:
            mistakes.add(unknown_key(other, values, tuple(DOMAINS)), str(other))
            continue
        wanted = mistakes.check(partial(_wanted, domain=DOMAINS[other]), values, other)
        when[other] = wanted or ()
    mistakes.raise_if_any()
    return when


def _wanted(values: object, domain: Domain) -> tuple[Value, ...]:
    listed = list(values) if isinstance(values, list | tuple) else [values]
    if not listed:
        _refuse(complaint("is an empty condition", values, "a value or a list of values"))
    mistakes = MistakeCollector()
    checked = [mistakes.check(domain.check, value) for value in listed]
    mistakes.raise_if_any()
    return tuple(value for value in checked if value is not None)


def _refuse_unknown_keys(value: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    mistakes = MistakeCollector()
    for key, item in value.items():
        if key not in known:
            mistakes.add(unknown_key(key, item, known), str(key))
    mistakes.raise_if_any()


def unknown_key(key: object, value: object, known: Sequence[str]) -> str:
    """Return the message for an unknown key, with the known key of the nearest spelling."""
    near = nearest(key, known)
    ending = f"; did you mean {near!r}?" if near else ""
    return f"is not a known key (got {shown(value)}); allowed: {', '.join(known)}{ending}"


def _refuse(text: str, *path: str | int) -> NoReturn:
    raise Refused([Problem(path, text)])


def _plain(when: When) -> dict[str, Any]:
    return {"when": {name: list(values) for name, values in when.items()}} if when else {}
