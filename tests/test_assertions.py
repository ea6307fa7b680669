"""Python may run without assertions (`python -O`): none in the packages decides anything."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _narrows(test: ast.expr) -> bool:
    """Whether a condition only tells the type of a value: isinstance, or a comparison with None."""
    match test:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(map(_narrows, parts))
        case ast.Call(func=ast.Name(id="isinstance")):
            return True
        case ast.Compare(
            left=ast.Name() | ast.Attribute(), ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(None)]
        ):
            return True
    return False


def test_an_assertion_only_tells_the_type_of_a_value() -> None:
    deciding = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for package in ("core", "orchestrator")
        for file in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert) and not _narrows(node.test)
    ]
    assert deciding == []
