"""Hide the passwords and tokens in addresses, which no message, log, tag or file may show."""

import re
from typing import Any
from urllib.parse import quote, unquote

_HIDDEN = "***"
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<rest>.*)", re.DOTALL)
_IN_QUERY = re.compile(
    r"(?P<name>[?&;#][\w.%-]*(?:pass|pwd|token|secret|key|credential|signature|sig|auth|sas)[\w.%-]*=)"
    r"(?P<value>[^&;#\s]*)",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(r"(?<=://)[^\s/@'\"]+@")
_LOCAL = ("sqlite", "file")  # these have no user, and their paths may contain an @
_SHORTEST = 4  # characters: a shorter secret is hidden only in an address, not wherever its letters occur


def redacted(uri: str) -> str:
    """Return the address with user and password, and keys and tokens of its query, replaced by ***."""
    _, host, rest = _parts(uri)
    return host + _IN_QUERY.sub(rf"\g<name>{_HIDDEN}", rest)


def scrub(value: Any, uri: str) -> Any:
    """Return a text, or the texts in mappings and lists, with every trace of the secrets of `uri` hidden."""
    if isinstance(value, str):
        return _scrub(value, uri)
    if isinstance(value, dict):
        return {name: scrub(item, uri) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item, uri) for item in value]
    return value


def _scrub(text: str, uri: str) -> str:
    text = _IN_TEXT.sub(f"{_HIDDEN}@", text.replace(uri, redacted(uri)))
    text = _IN_QUERY.sub(rf"\g<name>{_HIDDEN}", text)
    for secret in _secrets(uri):
        text = text.replace(secret, _HIDDEN)
    return text


def _secrets(uri: str) -> list[str]:
    """Return the secrets of an address in every spelling of libraries, the longest first: one may contain another."""
    user, _, rest = _parts(uri)
    name, _, password = user.partition(":")
    secrets = [user, password or name, *(match["value"] for match in _IN_QUERY.finditer(rest))]
    spelled = {spelling for secret in secrets for spelling in (secret, unquote(secret), quote(secret, safe=""))}
    return sorted((secret for secret in spelled if len(secret) >= _SHORTEST), key=len, reverse=True)


def _parts(uri: str) -> tuple[str, str, str]:
    """Split an address into user and password, the scheme with a mark in their place, and the rest.

    The last @ ends the user, because a password that was not quoted may contain any other character.
    """
    match = _ADDRESS.fullmatch(uri)
    if match is None or match["scheme"].lower() in _LOCAL or "@" not in match["rest"]:
        return "", "", uri
    user, _, rest = match["rest"].rpartition("@")
    return user, f"{match['scheme']}://{_HIDDEN}@", rest
