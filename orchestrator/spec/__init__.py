"""Turn a sweep file into a validated `Sweep`. All mistakes in a file are reported at once, one line each.

The modules, in reading order: `reading` (YAML and --set to plain data), `scalars` (what a value without quotes is) and
`lines` (the line of each value); `sweep`, `sections` and `model_use` (plain data to values, with `domains`,
`distributions` and `tables`); `checks` (whether the parts fit each other); `sources` (what a sweep reads beside its
file); `problems` (the messages). Nothing heavy is imported here: validating a file needs neither torch
nor Ray.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from orchestrator.spec.checks import mistakes, mistakes_in_file
from orchestrator.spec.distributions import Choice, Distribution, Fixed, FloatRange, IntRange, countable, unknown_key
from orchestrator.spec.domains import REFUSED, Domain, Size, size_bytes
from orchestrator.spec.problems import Path as KeyPath
from orchestrator.spec.problems import Problem, SpecError, complaint, nearest, shown
from orchestrator.spec.reading import override, place_of, read, without
from orchestrator.spec.sweep import SCHEMA_VERSION, Objective, Sweep, result_keys
from orchestrator.spec.tables import (
    BY_ATTRIBUTES,
    DOMAINS,
    LOOKS,
    METHODS,
    METRICS,
    PAIRED,
    PARAMETERS,
    STRENGTH,
    TRAINED,
    Value,
)

__all__ = [
    "BY_ATTRIBUTES",
    "DOMAINS",
    "METHODS",
    "LOOKS",
    "METRICS",
    "PAIRED",
    "PARAMETERS",
    "STRENGTH",
    "SCHEMA_VERSION",
    "TRAINED",
    "Choice",
    "Distribution",
    "Fixed",
    "FloatRange",
    "IntRange",
    "Objective",
    "Size",
    "SpecError",
    "Sweep",
    "Value",
    "countable",
    "result_keys",
    "load",
    "parse",
    "size_bytes",
]

# Replaces missing or wrong parts while the other parts are checked against each other.
_STAND_IN = {"name": "x", "model": "x"}


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Return the sweep in the YAML file `path`, with every `dotted.path=value` of `overrides` set first.

    Raises SpecError with one line for every mistake, which begins with its place: `file:line: `.
    """
    file = read(Path(path))
    if not isinstance(file.data, dict):
        raise SpecError([f"{path}: is not a sweep: the file must hold keys such as name, model and search"])
    data, refused = override(file.data, overrides)
    overridden = [place_of(text) for text in overrides]

    def line_for(problem: Problem) -> str:
        """Return the line for a mistake, without a place in the file where the mistake is in an override."""
        elsewhere = problem in refused or any(problem.path[: len(place)] == place for place in overridden)
        return str(problem) if elsewhere else f"{path}:{file.lines.of(problem.path)}: {problem}"

    return _build(data, [*file.repeated, *refused], mistakes_in_file, line_for)


def parse(data: object) -> Sweep:
    """Return the sweep that `data` (as read from YAML or JSON) describes. Raises SpecError with every mistake."""
    if not isinstance(data, dict):
        raise SpecError([f"a sweep must be a mapping with keys such as name, model and search (got {shown(data)})"])
    return _build(data, [], mistakes)


def _build(
    data: dict[Any, Any],
    problems: list[Problem],
    mistakes: Callable[[Sweep, list[KeyPath]], list[Problem]],
    line_for: Callable[[Problem], str] = str,
) -> Sweep:
    """Return the sweep. Raises SpecError with every mistake, in the line that `line_for` makes of it.

    mistakes: returns those between parts of a sweep, given the paths of values that are wrong themselves.
    """
    try:
        sweep = Sweep.model_validate(data)
        wrong: list[KeyPath] = []
    except ValidationError as error:
        problems = [*problems, *_file_mistakes(error)]
        sweep, wrong = _salvaged(data, error)
    problems = [*problems, *mistakes(sweep, wrong)]
    if problems:
        raise SpecError(map(line_for, problems))
    return sweep


def _salvaged(data: dict[Any, Any], error: ValidationError) -> tuple[Sweep, list[KeyPath]]:
    """Return the sweep without its wrong values, so that the other parts can be checked too, and the paths left out."""
    wrong = [path for detail in error.errors(include_url=False) for path in _meant(detail)]
    while True:  # ends: each round leaves out more, and the stand-ins alone are valid
        for path in _culprits(error):
            while path and path in wrong:  # left out before and still wrong: leave out its parent
                path = path[:-1]
            wrong.append(path)
        try:
            return Sweep.model_validate(_STAND_IN | without(data, wrong)), wrong
        except ValidationError as again:
            error = again


def _culprits(error: ValidationError) -> Iterator[KeyPath]:
    """Yield the paths of the keys that have to be left out."""
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        match detail["type"]:
            case kind if kind == REFUSED:
                yield from ((*path, *problem.path) for problem in detail["ctx"]["problems"])
            case "missing":
                yield path[:-1] or path
            case "invalid_key":
                yield (*path[:-1], detail["input"])
            case _:
                yield path


def _meant(detail: ErrorDetails) -> Iterator[KeyPath]:
    """Yield the known key that a misspelt one probably means: no check may rely on its default."""
    unknown = [detail["loc"]] if detail["type"] == "extra_forbidden" else []
    if detail["type"] == REFUSED and detail["loc"] == ("search",):
        unknown = [("search", problem.path[0]) for problem in detail["ctx"]["problems"] if problem.path]
    for path in unknown:
        near = nearest(path[-1], _keys(path[:-1]))
        if near:
            yield (*path[:-1], near)


def _file_mistakes(error: ValidationError) -> Iterator[Problem]:
    """Yield pydantic's findings as Problems in this package's words."""
    details = error.errors(include_url=False)
    for detail in details:
        path, value = detail["loc"], detail["input"]
        match detail["type"]:
            case kind if kind == REFUSED:
                yield from (problem.below(*path) for problem in detail["ctx"]["problems"])
            case "extra_forbidden":
                yield Problem(path, unknown_key(path[-1], value, _keys(path[:-1])))
            case "invalid_key":
                yield Problem((*path[:-1], shown(value)), unknown_key(value, value, _keys(path[:-1])))
            case "missing":
                if not _misspelt(path, details):
                    yield Problem(path, f"is missing; allowed: {_allowed(path)}")
            case _:
                yield Problem(path, complaint("is not a mapping", value, _allowed(path)))


def _misspelt(missing: KeyPath, details: list[ErrorDetails]) -> bool:
    """Return whether an unknown key beside the missing one is a misspelling of it, and reports the mistake already."""
    return any(missing in _meant(detail) for detail in details)


def _keys(path: KeyPath) -> tuple[str, ...]:
    """Return the keys that the section at `path` may hold."""
    if path == ("search",):
        return tuple(PARAMETERS)
    return tuple(field.alias or name for name, field in _section(path).model_fields.items())


def _allowed(path: KeyPath) -> str:
    """Return the text that says which values are allowed at `path`."""
    domains = [item for item in _field(path).metadata if isinstance(item, Domain)]
    return str(domains[0]) if domains else f"a mapping with {', '.join(_keys(path))}"


def _section(path: KeyPath) -> type[BaseModel]:
    section: type[BaseModel] = Sweep
    for depth in range(len(path)):
        annotation = _field(path[: depth + 1]).annotation
        section = next(kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
    return section


def _field(path: KeyPath) -> FieldInfo:
    fields = _section(path[:-1]).model_fields
    return next(field for name, field in fields.items() if path[-1] == (field.alias or name))
