"""What hostile files are made of: values that no reader expects, and ways to spoil what was right."""

import random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 10**400, 0.5, 1e308, -1e-308),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "\0", "\x1b[2J", "\ud800", "\u202e", "null", "1e999", "9" * 500, "a" * 5_000, "../../etc/passwd", "/"),
    *("\n", "a\nb", "none", "auto", "learned", "pca", "F32", "I64", "table", "sigma", "1:59:59", "0x" + "f" * 99),
    *([], {}, [[]], [0], [1, 2], [2, 1], [0.5, 0.5], {"": ""}, {"choice": []}, {"int": [2, 2**62]}, {"when": {}}),
    *([None] * 30, list(range(300)), ["a"] * 300, {str(n): n for n in range(100)}),
)

FRAGMENTS = (
    *(b"[", b"]", b"{", b"}", b":", b"-", b"?", b"&a ", b"*a", b"<<: ", b"!!python/name:os.system ", b"!!int ", b"! "),
    *(b"'", b'"', b"|", b">", b"#", b"%YAML 1.1\n", b"---\n", b"...\n", b"\t", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"[" * 200, b"{a: " * 200, b"- " * 200, b"&a [*a]", b"&a {<<: *a}", b"9" * 5_000, b"0x" + b"f" * 5_000, b"1e999"),
    *(
        b"null",
        b"true",
        b".nan",
        b"-.inf",
        b"2026-01-01",
        b"2026-13-45",
        b"1:2:3",
        b"0b1",
        b"\\ud800",
        b"NaN",
        b"Infinity",
    ),
)


def bitten(content: bytes, chance: random.Random, raw: bytes) -> bytes:
    """Bytes turned over, cut off, doubled, or put in place of others."""
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at, length = chance.randrange(len(changed) + 1), chance.randrange(1, 16)
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at:]
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length] * chance.choice((1, 2, 50))
            case 4:
                changed[at:at] = raw[:length]
            case _:
                changed[at : at + length] = chance.choice(FRAGMENTS)
    return bytes(changed)


def replaced(tree: Any, chance: random.Random, values: list[Any]) -> Any:
    """A copy of a tree of lists and mappings in which one place is another: its value, its key, or whether it is."""
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.2:
        return chance.choice(values) if chance.random() < 0.3 else chance.choice(HOSTILE)
    copied: Any = tree.copy()
    at = chance.choice(list(copied)) if isinstance(copied, dict) else chance.randrange(len(copied))
    match chance.randrange(8):
        case 0:
            del copied[at]
        case 1 if isinstance(copied, dict):
            copied[str(chance.choice(HOSTILE))[:6000] if chance.random() < 0.5 else "when"] = copied.pop(at)
        case 2 if isinstance(copied, dict):
            copied[at], other = copied[chance.choice(list(copied))], copied[at]
            copied[chance.choice(list(copied))] = other
        case _:
            copied[at] = replaced(copied[at], chance, values)
    return copied
