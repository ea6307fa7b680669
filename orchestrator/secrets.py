"""Hide the passwords and tokens in addresses, which no message, log, tag or file may show."""

import re
from collections.abc import Mapping
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


def scrub(text: str, *uris: str | None) -> str:
    """Return a library's message with every trace of the secrets of these addresses hidden, also outside of them.

    Only for such messages: a password may be a word that our own texts and fields need.
    """
    secrets = {secret for uri in uris if uri is not None for secret in _secrets(uri)}
    text = str(hide_addresses(text, *uris))
    for secret in sorted(secrets, key=len, reverse=True):  # one may contain another
        text = text.replace(secret, _HIDDEN)
    return text


def hide_addresses(value: Any, *uris: str | None) -> Any:
    """Return a text, or a container of texts, with `uris` and all other addresses in it redacted. All else stays."""
    if isinstance(value, str):
        for uri in uris:
            value = value.replace(uri, redacted(uri)) if uri is not None else value
        return _IN_QUERY.sub(rf"\g<name>{_HIDDEN}", _IN_TEXT.sub(f"{_HIDDEN}@", value))
    if isinstance(value, dict):
        return {name: hide_addresses(item, *uris) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_addresses(item, *uris) for item in value]
    return value


def without_secrets(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved sweep with its stores' addresses, and any other address in it, redacted; tuples as lists."""
    stores = {store: resolved[store] for store in ("tracking", "study") if resolved.get(store, {}).get("uri")}
    shown = {store: {**content, "uri": redacted(content["uri"])} for store, content in stores.items()}
    hidden: dict[str, Any] = hide_addresses({**resolved, **shown})
    return hidden


def _secrets(uri: str) -> list[str]:
    """Return the secrets of an address in every spelling of libraries."""
    user, _, rest = _parts(uri)
    name, _, password = user.partition(":")
    secrets = [user, password or name, *(match["value"] for match in _IN_QUERY.finditer(rest))]
    spelled = {spelling for secret in secrets for spelling in (secret, unquote(secret), quote(secret, safe=""))}
    return [secret for secret in spelled if len(secret) >= _SHORTEST]


def _parts(uri: str) -> tuple[str, str, str]:
    """Split an address into user and password, the scheme with a mark in their place, and the rest.

    The last @ ends the user, because a password that was not quoted may contain any other character.
    """
    match = _ADDRESS.fullmatch(uri)
    if match is None or match["scheme"].lower() in _LOCAL or "@" not in match["rest"]:
        return "", "", uri
    user, _, rest = match["rest"].rpartition("@")
    return user, f"{match['scheme']}://{_HIDDEN}@", rest
