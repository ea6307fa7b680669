"""Address a database, a file or one of PostgreSQL that many sweeps share, and recognise failures that waiting cures."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from core.errors import UserError, first_line
from orchestrator.secrets import redacted, scrub

_DRIVER = "postgresql+psycopg"
# A server that becomes unreachable is given up after one minute; with Linux's defaults it takes hours.
_PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# Classes of SQLSTATE where waiting helps: connections, resources such as disk space, an administrator's action, and
# conflicting transactions. Then two single codes: a standby that has not taken over yet, and a lock.
_PASSING = ("08", "53", "57", "40", "25006", "55P03")
_MAKING_TABLES = 4_921_337_114  # the key of the advisory lock held while Optuna's tables are made


def sqlite_address(file: Path) -> str:
    """Return the address of an SQLite file for SQLAlchemy, Optuna and MLflow, whatever characters its path has.

    Raises UserError where the path is not UTF-8: no address can hold it.
    """
    if str(file).encode(errors="replace").decode() != str(file):
        raise UserError(
            f"--root: {str(file.parent)!r} is not UTF-8, so no database can be opened there; name another folder"
        )
    plain = f"sqlite:///{file}"
    if make_url(plain).database == str(file):
        return plain
    # With the driver's name: for sqlite:/// MLflow also makes a folder of the escaped name.
    return URL.create("sqlite+pysqlite", database=str(file)).render_as_string()


@dataclass(frozen=True)
class Database:
    """A study in a database, under a name that no other sweep's study has."""

    uri: str = field(repr=False)
    study: str

    @property
    def shown(self) -> str:
        """The address without its secrets. It does not depend on how the driver and the password are given."""
        return redacted(_plain(self.uri))

    @property
    def url(self) -> str:
        """The address for SQLAlchemy, with psycopg 3 as its driver."""
        return _plain(self.uri).replace("postgresql", _DRIVER, 1)

    @property
    def options(self) -> dict[str, Any]:
        """The connection options. An option that the address itself sets is left out."""
        return {name: value for name, value in _PATIENCE.items() if name not in make_url(self.url).query}

    def scrub(self, message: str) -> str:
        """Return a library's text without the secrets of the address."""
        return scrub(message, self.uri)

    def check(self) -> None:
        """Raise UserError, in one sentence, where no study can be kept in this database."""
        with self._connected() as connection:
            if not connection.scalar(text("SELECT to_regclass('studies') IS NOT NULL")):
                may = text("SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)")
                table, right = "", "may make tables in it"
            else:
                may = text("SELECT has_table_privilege('studies', 'SELECT, INSERT, UPDATE')")
                table, right = "table studies of the ", "may write to it"
            if not connection.scalar(may):
                raise UserError(
                    f"study.uri: this user may not write to the {table}database {self.shown}; "
                    f"name one that {right}, or have the right granted"
                )

    def holds(self) -> bool:
        """Return whether the study exists. Raises UserError where the database does not answer."""
        with self._connected() as connection:
            if not connection.scalar(text("SELECT to_regclass('studies') IS NOT NULL")):
                return False
            query = text("SELECT 1 FROM studies WHERE study_name = :name")
            return connection.scalar(query, {"name": self.study}) is not None

    @contextmanager
    def making_tables(self) -> Iterator[None]:
        """Hold a lock while tables are made: of two processes that make the same tables, one fails.

        The server frees the lock when the process that holds it is gone.
        """
        with self._connected() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MAKING_TABLES})
            yield

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        engine = self._engine()
        try:
            with engine.connect() as connection:
                yield connection
            return
        except SQLAlchemyError as error:
            why = self.scrub(reason(error))
        raise UserError(
            f"study.uri: the database {self.shown} does not answer ({why}); start it, correct the address, or leave "
            "uri out to keep the study in the sweep's folder"
        )

    def _engine(self) -> Engine:
        try:
            return create_engine(self.url, poolclass=NullPool, connect_args=self.options)
        except ImportError:
            why = "PostgreSQL needs psycopg; install it with: pip install 'psycopg[binary]'"
        except (ArgumentError, ValueError):
            why = f"{self.shown} is no address of a database; allowed: postgresql://user@host:port/database"
        raise UserError(f"study.uri: {why}")


StudyPlace = Path | Database  # where a study is kept: a file, or a database that many sweeps share


def shown_place(where: StudyPlace) -> str:
    """Return the place of a study as text, for messages and for comparing two places."""
    return where.name if isinstance(where, Path) else where.shown


def passing_reason(error: BaseException) -> str | None:
    """Return why a call to a PostgreSQL server failed if a later call may work, else None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        # Optuna repeats the call in a session that is already closed, and raises the error of that call.
        cause = cause.__cause__ or cause.__context__
    if cause is None or not type(cause.orig).__module__.startswith("psycopg"):
        return None
    state = getattr(cause.orig, "sqlstate", None)
    lost = cause.connection_invalidated or (state is None and "OperationalError" in type(cause).__name__)
    return reason(cause) if lost or str(state).startswith(_PASSING) else None


def reason(error: Exception) -> str:
    """Return the driver's message, without SQLAlchemy's own words and links to its help."""
    return first_line(error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error)


def _plain(uri: str) -> str:
    return uri.replace(f"{_DRIVER}://", "postgresql://", 1) if uri.startswith(f"{_DRIVER}://") else uri
