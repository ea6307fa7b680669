"""The templates of the pages, and what fills them: one Jinja environment, pictures as data, hashes of scripts."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_FOLDER = Path(__file__).parent


def read(name: str) -> str:
    """Return the text of a file of this folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def environment(
    folder: Path = _FOLDER, html: bool = True, filters: Mapping[str, Callable[..., Any]] | None = None
) -> Environment:
    """Return what fills the templates of a folder. html: values are escaped, and a template's last newline is dropped.

    A name that a template uses and nobody gives is an error.
    """
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        keep_trailing_newline=not html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= filters or {}
    return made


def data_uri(content: bytes, form: str) -> str:
    """Return a picture as a data URI. form: its format, such as "png"."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(content).decode()}"


def script_hash(script: str) -> str:
    """Return the SHA-256 of a script as a content security policy names it, without its prefix."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
