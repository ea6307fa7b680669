"""Find the line of a sweep file on which a value stands, so that error messages can name it."""

from collections.abc import Mapping

import yaml

from orchestrator.spec.problems import Path, shown
from orchestrator.spec.scalars import plain

# (id of a list or mapping, index in it or id of the key) -> line of the alias that stands there. The node of an alias
# has only the line of its anchor.
Aliases = Mapping[tuple[int, int], int]


class Lines:
    """The lines of the values of one file. Use it after the values have been made, when merge keys are resolved."""

    def __init__(self, root: yaml.Node | None, aliases: Aliases) -> None:
        self.root, self.aliases = root, aliases

    def of(self, path: Path) -> int:
        """Return the line of the value at a path, from 1; for a missing value, that of the value that would hold it.

        The line of a block is that of its key. The line of an alias is where it was written; values inside of it have
        the line at its anchor.
        """
        node, line = self.root, 1 if self.root is None else line_of(self.root)
        for part in path:
            inside = None if node is None else _inside(node, part)
            if inside is None:
                break
            place, inner, block = inside
            line = self.aliases.get((id(node), place), line_of(block or inner))
            node = inner
        return line


def line_of(node: yaml.Node) -> int:
    """Return the line on which a node begins, from 1."""
    line: int = node.start_mark.line + 1
    return line


def _inside(node: yaml.Node, part: str | int) -> tuple[int, yaml.Node, yaml.Node | None] | None:
    """Return (the place in `Aliases`, the node there, its key where the node is a block), or None if missing."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return part, node.value[part], None
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):  # the last one counts, and merged keys come first
            if str(part) in _names(key):
                block = isinstance(value, yaml.CollectionNode) and not value.flow_style
                return id(key), value, key if block else None
    return None


def _names(key: yaml.Node) -> tuple[str, ...]:
    """Return the names of a key in a path: as it is written, and as it is shown (`True` is true)."""
    if not isinstance(key, yaml.ScalarNode):
        return ()
    is_text = key.tag == "tag:yaml.org,2002:str"
    return (key.value,) if is_text else (key.value, shown(plain(key.value)))
