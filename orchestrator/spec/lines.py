"""On which line of a sweep file a value stands, so that whoever made a mistake there finds it at once."""

from collections.abc import Mapping

import yaml

from orchestrator.spec.problems import Path, shown

# (id of a list or mapping, index in it or id of the key) -> line of the alias that stands there: a node knows only
# where its anchor is.
Aliases = Mapping[tuple[int, int], int]


class Lines:
    """Where the values of one file stand. Asked after the file was made into values: merge keys are resolved then."""

    def __init__(self, root: yaml.Node | None, aliases: Aliases) -> None:
        self.root, self.aliases = root, aliases

    def of(self, path: Path) -> int:
        """The line of the value at a path, from 1; of what is not there, that of what it would stand in.

        A block stands where its key does, an alias where it was written, and what is inside of it where its anchor is.
        """
        node, line = self.root, 1 if self.root is None else line_of(self.root)
        for part in path:
            found = None if node is None else _inside(node, part)
            if found is None:
                break
            place, inner, block = found
            line = self.aliases.get((id(node), place), line_of(block or inner))
            node = inner
        return line


def line_of(node: yaml.Node) -> int:
    """The line on which a node begins, from 1."""
    line: int = node.start_mark.line + 1
    return line


def _inside(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node, yaml.Node | None] | None:
    """(its place for `Aliases`, what stands there, its key where it is a block); None where nothing does."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return part, node.value[part], None
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # the last one counts, and what is merged in comes first
            if str(part) in _names(key):
                block = isinstance(value, yaml.CollectionNode) and not value.flow_style
                return id(key), value, key if block else None
    return None


def _names(key: yaml.Node) -> tuple[str, ...]:
    """What a path may call a key: as it is written, and as it is read (`on` is true)."""
    if not isinstance(key, yaml.ScalarNode):
        return ()
    plain = key.tag == "tag:yaml.org,2002:str"
    return (key.value,) if plain else (key.value, shown(yaml.safe_load(key.value)))
