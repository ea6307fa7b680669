"""A sweep file, and the `--set path=value` given with it, as plain data. YAML's silent habits become mistakes here."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.spec.problems import Problem, SpecError, shown
from orchestrator.spec.tables import METHODS


def read(path: Path) -> tuple[Any, list[Problem]]:
    """The content of the file, and a Problem for every key that stands in it twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError([f"{path}: there is no such file"]) from None
    except UnicodeDecodeError:
        raise SpecError([f"{path}: is not text in UTF-8"]) from None
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from None
    try:
        return _yaml(text)
    except _NotYaml as error:
        raise SpecError([f"{path}: is not YAML: {error}"]) from None


def override(data: dict[Any, Any], overrides: Sequence[str]) -> tuple[dict[Any, Any], list[Problem]]:
    """A copy of `data` with every `path=value` set, and a Problem for each that cannot be."""
    data, problems = copy.deepcopy(data), []
    for text in overrides:
        try:
            problems += _set(data, text)
        except _NotYaml as error:
            problems.append(Problem((f"--set {text}",), f"the value is not YAML: {error}"))
    return data, problems


def _set(data: dict[Any, Any], text: str) -> list[Problem]:
    dotted, equals, given = text.partition("=")
    path = _keys(dotted)
    if not equals or not all(path):
        return [Problem((f"--set {text}",), "is not of the form path=value, like train.batch=8")]
    value, repeated = _yaml(given)
    target = data
    for part in path[:-1]:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            return [Problem((f"--set {text}",), f"{part} holds no keys to set (it is {shown(target)})")]
    target[path[-1]] = value
    return [problem.below(*path) for problem in repeated]


def _keys(dotted: str) -> tuple[str, ...]:
    """search.pca.samples -> ('search', 'pca.samples'): a method's name opens a parameter's, which holds the dot."""
    keys: list[str] = []
    for part in map(str.strip, dotted.split(".")):
        if keys and keys[-1] in METHODS:
            keys[-1] += f".{part}"
        else:
            keys.append(part)
    return tuple(keys)


class _NotYaml(Exception):
    """Says in one line why a text is not YAML."""


def _yaml(text: str) -> tuple[Any, list[Problem]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return yaml.safe_load(text), [] if node is None else list(_repeated(node, (), set()))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise _NotYaml(f"{error.problem}{where}") from None
    except RecursionError:
        raise _NotYaml("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        raise _NotYaml(str(error).splitlines()[0]) from None


def _repeated(node: yaml.Node, path: tuple[str | int, ...], seen: set[int]) -> Iterator[Problem]:
    """YAML keeps the last of two equal keys and says nothing; here each one is a Problem."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated(item, (*path, index), seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            below = (*path, str(key.value))
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                yield Problem(below, f"is given twice (lines {first[key.value]} and {line})")
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = line
            yield from _repeated(item, below, seen)


def without(data: dict[Any, Any], paths: Iterable[tuple[str | int, ...]]) -> dict[Any, Any]:
    """A copy of `data` with what stands at `paths` removed (a list as a whole, never one item of it)."""
    data = copy.deepcopy(data)
    for path in paths:
        if not path:
            return {}
        target: Any = data
        for depth, part in enumerate(path):
            inner = target.get(part)
            if depth == len(path) - 1 or not isinstance(inner, dict):
                target.pop(part, None)
                break
            target = inner
    return data
