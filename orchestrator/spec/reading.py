"""Read a sweep file, and the `--set path=value` given with it, as plain data.

Mistakes that YAML accepts silently, such as repeated keys, are reported. A file may come from an untrusted source, so
its cost is bounded before it is read: length, depth, number of values.
"""

import copy
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.files import open_regular
from orchestrator.spec.lines import Lines
from orchestrator.spec.problems import Problem, SpecError, shown
from orchestrator.spec.scalars import read_scalars
from orchestrator.spec.tables import METHODS

# Limits of a file, or of the value of one --set: far more than any sweep needs. The sweeps that ship have at most 1,574
# bytes, depth 5 and 124 values.
MAX_BYTES = 1 << 20
MAX_DEPTH = 20  # lists and mappings inside each other
MAX_VALUES = 5_000  # counting the values that aliases repeat
MAX_ALIASES = 100
MAX_TEXT = 4_096  # characters of one value or key
MAX_NUMBER = 100  # characters of a number: longer hexadecimal ones could be read, but not shown


@dataclass(frozen=True)
class Document:
    """YAML as plain data, with a Problem for every key given twice, and the lines of all values."""

    data: Any
    repeated: list[Problem]
    lines: Lines


def read(path: Path) -> Document:
    """Return the content of the file. Raises SpecError where it cannot be read, is not YAML, or exceeds the limits."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _TooMuch(f"it is longer than {MAX_BYTES} bytes")
        return document(content.decode())
    except FileNotFoundError:
        raise SpecError([f"{path}: there is no such file"]) from None
    except IsADirectoryError:
        inside = sorted(file.name for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
        held = f"one of its files: {', '.join(inside)}" if inside else "a YAML file, and it holds none"
        raise SpecError([f"{path}: is a folder, and no sweep file; allowed: {held}"]) from None
    except UnicodeDecodeError:
        raise SpecError([f"{path}: is not text in UTF-8"]) from None
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from None
    except _TooMuch as error:
        raise SpecError([f"{path}: is no sweep: {error}"]) from None
    except _NotYaml as error:
        raise SpecError([f"{path}: is not YAML: {error}"]) from None


def override(data: dict[Any, Any], overrides: Sequence[str]) -> tuple[dict[Any, Any], list[Problem]]:
    """Return a copy of `data` with every `path=value` set, and a Problem for each one that is refused."""
    data, problems = copy.deepcopy(data), []
    for text in overrides:
        try:
            problems += _set(data, text)
        except _TooMuch as error:
            problems.append(_wrong(text, f"is refused: {error}"))
        except _NotYaml as error:
            problems.append(_wrong(text, f"the value is not YAML: {error}"))
    return data, problems


def _wrong(text: str, what: str) -> Problem:
    return Problem((f"--set {text}" if len(text) <= _SHOWN else f"--set {text[:_SHOWN]}...",), what)


def _set(data: dict[Any, Any], text: str) -> list[Problem]:
    dotted, equals, value_text = text.partition("=")
    path = _keys(dotted)
    if not equals or not all(path):
        return [_wrong(text, "is not of the form path=value, like train.batch=8")]
    if len(text) > MAX_BYTES:
        raise _TooMuch(f"it is longer than {MAX_BYTES} bytes")
    if len(path) > MAX_DEPTH:
        raise _TooMuch(f"more than {MAX_DEPTH} keys inside each other")
    value = document(value_text)
    target = data
    for part in path[:-1]:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            return [_wrong(text, f"{part} holds no keys to set (it is {shown(target)})")]
    target[path[-1]] = value.data
    return [problem.below(*path) for problem in value.repeated]


def place_of(override: str) -> tuple[str, ...]:
    """Return the path of an override `path=value`."""
    return _keys(override.partition("=")[0])


def _keys(dotted: str) -> tuple[str, ...]:
    """Split a dotted path: search.pca.samples -> ('search', 'pca.samples').

    A method's name stays with the name of its parameter, which holds the dot.
    """
    keys: list[str] = []
    for part in map(str.strip, dotted.split(".")):
        if keys and keys[-1] in METHODS:
            keys[-1] += f".{part}"
        else:
            keys.append(part)
    return tuple(keys)


class _NotYaml(Exception):
    """A text is not YAML; the message is one line."""


class _TooMuch(Exception):
    """A text is YAML, but exceeds what a sweep file may have; the message is one line."""


def document(text: str) -> Document:
    """Return YAML as plain data, with values without quotes read as `orchestrator.spec.scalars.plain` does."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        # Before the values are made, because that adds the keys of a merge key (<<) to those of its mapping.
        repeated = [] if node is None else list(_repeated(node, (), set()))
        data = None if node is None else loader.construct_document(node)
        return Document(data, repeated, Lines(node, loader.written))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _NotYaml(f"{error.problem}{_place(mark) if mark else ''}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise _NotYaml(str(error).splitlines()[0]) from None


class _Loader(yaml.SafeLoader):
    """A SafeLoader that stops while it reads, before any value is made, where a text exceeds the limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = self.aliases = 0
        self.held: dict[Any, int] = {}  # anchor -> number of values that its aliases repeat, once all of them are read
        self.written: dict[tuple[int, int], int] = {}  # the lines of aliases (lines.Aliases)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node, counted. Raises as `_check` does where the document is too deep or too large."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # of its events the stubs say little
        before, line = self.values, event.start_mark.line + 1
        self.values += 1
        self.depth += 1
        self._check(event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self.written[id(parent), index if isinstance(index, int) else id(index)] = line  # the key in a mapping
        if node is not None and not isinstance(event, yaml.AliasEvent):
            self._check_value(node)
            if event.anchor is not None:
                self.held[event.anchor] = self.values - before
        return node

    def _check(self, event: Any) -> None:
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if event.anchor in self.anchors and event.anchor not in self.held:
                raise _TooMuch(f"*{event.anchor} stands inside what it repeats{_place(event.start_mark)}")
            self.values += self.held.get(event.anchor, 0)
        elif event.tag is not None and event.tag != "!":  # ! alone marks text that looks like a number
            raise _TooMuch(f"tags such as {shown(event.tag)} are not read{_place(event.start_mark)}")
        for count, most, what in (
            (self.depth, MAX_DEPTH, "lists and mappings inside each other"),
            (self.values, MAX_VALUES, "values, counting those that aliases repeat"),
            (self.aliases, MAX_ALIASES, "aliases"),
        ):
            if count > most:
                raise _TooMuch(f"more than {most} {what}{_place(event.start_mark)}")

    def _check_value(self, node: yaml.Node) -> None:
        if not isinstance(node, yaml.ScalarNode):
            return
        kind, text = node.tag.rpartition(":")[2], node.value
        most = MAX_NUMBER if kind in ("int", "float") else MAX_TEXT
        if len(text) > most:
            what = "a number" if kind in ("int", "float") else "text"
            raise _TooMuch(f"{what} of more than {most} characters{_place(node.start_mark)}")
        if not text.isprintable() and any(unicodedata.category(letter) in _REFUSED for letter in text):
            raise _TooMuch(f"text with control characters, {shown(text)}{_place(node.start_mark)}")


read_scalars(_Loader)
_REFUSED = ("Cc", "Cs")  # Unicode's control characters, and halves of characters, which cannot be written
_SHOWN = 80  # characters of a --set in a message


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})"


def _repeated(node: yaml.Node, path: tuple[str | int, ...], seen: set[int]) -> Iterator[Problem]:
    """Yield a Problem for each key given twice, of which YAML would silently keep the last."""
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
            below = (*path, key.value if isinstance(key, yaml.ScalarNode) else "?")
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                yield Problem(below, f"is given twice (lines {first[key.value]} and {line})")
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = line
            yield from _repeated(item, below, seen)


def without(data: dict[Any, Any], paths: Iterable[tuple[str | int, ...]]) -> dict[Any, Any]:
    """Return a copy of `data` without the values at `paths`; a list is removed as a whole, never one item of it."""
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
