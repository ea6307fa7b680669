"""Open an MLflow store, check its version, and classify its errors."""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the address may hold a password

import mlflow
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from PIL import UnidentifiedImageError

from core.errors import UserError
from orchestrator.secrets import redacted
from orchestrator.store.database import sqlite_address
from orchestrator.store.moved import DATABASE

T = TypeVar("T")

_BUSY_S = 60.0  # how long to wait for another process that holds the embedded store
_VERSION = re.compile(r"(\d+)\.(\d+)\S*")

# Errors that a repeated call gets again. Missing rights, limits and faults of the server can be repaired meanwhile.
_PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
_PERMANENT_STATUS = (400, 413, 414, 422)  # the same as HTTP status, from the artifact store


def permanent(error: Exception) -> bool:
    """Return whether the same call would fail for ever, although the store answers."""
    if isinstance(error, UserError):  # the store could not be opened
        return False
    if isinstance(error, MlflowException):
        if error.error_code == "BAD_REQUEST":  # a proxy says so too, and a server without a free connection
            return "QueuePool" not in str(error) and (
                isinstance(error, RestException) or "API request" not in str(error)
            )
        return error.error_code in _PERMANENT
    if isinstance(error, OSError):
        status = getattr(getattr(error, "response", None), "status_code", None)
        return isinstance(error, UnidentifiedImageError) or status in _PERMANENT_STATUS
    return isinstance(error, ValueError | TypeError | KeyError)


def refusal(error: Exception, address: str) -> str | None:
    """Return why a server that answers refuses this client, and what to do; None where the error is another one."""
    said, code = str(error), getattr(error, "error_code", "")
    if "Invalid Host header" in said:
        host = urlsplit(address).netloc.rpartition("@")[2]
        return f"does not know itself by that name; start it with --allowed-hosts '{host}', or call it by another name"
    if code == "UNAUTHENTICATED" or "error code 401 " in said:
        return (
            "wants to know who asks; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, to what it accepts"
        )
    if code == "PERMISSION_DENIED" or "error code 403 " in said:
        return (
            "refuses this user; have the right to read and make experiments granted, or set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to one that has it"
        )
    return None


def store_uri(uri: str | None, root: Path) -> str:
    """Return the server's address, or that of the embedded store under `root` where `uri` is None."""
    return uri or sqlite_address(root.resolve() / DATABASE)


def open_store(uri: str, root: Path, embedded: bool) -> mlflow.MlflowClient:
    """Return a client of a store; the embedded store is created if it is missing."""
    if not embedded:
        return mlflow.MlflowClient(uri, uri)
    root.mkdir(parents=True, exist_ok=True)
    # Two processes that open a new store at once would both create its tables, and one of them would fail.
    with FileLock(root / "mlflow.lock", fallback_to_soft=False):
        return retry_while_locked(lambda: mlflow.MlflowClient(uri, uri))


def quieten() -> None:
    """Keep MLflow's log messages off the screen.

    MLflow's stores log every attempt, with the address. The caller of the last attempt reports the result itself.
    """
    for name in ("alembic", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def check_version(uri: str) -> str | None:
    """Return a warning where the server's version is not the client's, else None.

    Raises UserError where the major version differs, because requests and answers then have another form.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return None
    ours, address = mlflow.__version__, redacted(uri)
    try:
        server = get_default_host_creds(uri)  # type: ignore[no-untyped-call]  # MLflow's own helpers
        answer = http_request(server, "/version", "GET", max_retries=0)  # type: ignore[no-untyped-call]  # MLflow's own helpers
        theirs = answer.text.strip() if answer.status_code == 200 else ""
    except MlflowException:
        theirs = ""
    if not (numbers := _VERSION.fullmatch(theirs)):
        return f"tracking.uri: {address} does not say which version of MLflow it is; this one is written for {ours}"
    major, minor = ours.split(".")[:2]
    if numbers[1] != major:
        raise UserError(
            f"tracking.uri: the MLflow server {address} is version {theirs}, and the client here is {ours}, which "
            f"cannot record there; run a server of version {major} (pip install mlflow=={ours}), or give no "
            "address (tracking.uri, MLFLOW_TRACKING_URI) to use the embedded store"
        )
    if numbers[2] != minor:
        return (
            f"tracking.uri: the MLflow server {address} is version {theirs}, the client here {ours}; the same is safer"
        )
    return None


def retry_while_locked(call: Callable[[], T]) -> T:
    """Repeat a call for up to a minute while another process holds the embedded store: SQLite gives up sooner."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            return call()
        except Exception as error:
            if "database is locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.2)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters with dotted names: {"a": {"b": 1}} -> {"a.b": 1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
