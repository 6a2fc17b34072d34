"""A fleet's PostgreSQL server: its address without a secret, connections, error messages.

psycopg and SQLAlchemy are imported when a connection is opened. docs/fleet.md, F1 to F3, has the
rules.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from tracepaper.storage.record.rows import SCHEMA
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, ServerLost
from tracepaper.strategies.extras import missing_sentence, require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg import Connection as Driver
    from sqlalchemy import Connection

SCHEMA_NAME: Final = "tracepaper"
"""The schema of the tables and views in the server's database."""
ANSWER_WITHIN_S: Final = 10
ONE_SNAPSHOT: Final = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
"""Options of a connection whose transaction reads one state of all tables."""
SCHEMES: Final = ("postgresql", "postgres")
PARAMETERS: Final = frozenset(
    {
        *("host", "hostaddr", "port", "dbname", "user", "service", "passfile", "connect_timeout"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "channel_binding"),
        *("require_auth", "target_session_attrs", "gssencmode", "krbsrvname"),
    }
)
"""Parameters that an address may have; passwords and other options are rejected."""
_KEEPALIVE: Final = (
    "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    "-c idle_in_transaction_session_timeout=120s "
    f"-c search_path={SCHEMA_NAME} -c extra_float_digits=1 -c TimeZone=UTC -c jit=off"
)
"""Settings of a session. The server releases the lock of a lost client within a minute.

``jit=off``, because compiling the query of a view takes longer than running it.
"""
_PASSWORD_PLACES: Final = "the variable PGPASSWORD, a service file or .pgpass"  # noqa: S105
_PASSWORD: Final = re.compile(r"passw(or)?d\s*=", re.IGNORECASE)
_PASSWORD_SENTENCE: Final = (
    f"its address holds a password: take it out, for libpq finds it in {_PASSWORD_PLACES}"
)


class ShipProgress(Struct, frozen=True):
    """The progress of shipping."""

    steps: int = 0  # shipped by this process
    lag_steps: int = 0  # committed but not shipped
    lag_s: float = 0.0  # wall seconds since the oldest of them was noticed
    errors: int = 0
    error: str = ""  # the message of the present fault; empty without one
    holes: int = 0  # spans that a prune dropped before they were shipped


class AddressHasSecret(ValueError):
    """An address that may hold a password."""

    def __init__(self) -> None:
        super().__init__(_PASSWORD_SENTENCE)


def server_address(url: str) -> str:
    """Check the address *url* of a server, such as ``postgresql://user@host:5432/fleet``.

    Raises ``ValueError`` without any part of the address if it is invalid, and its subclass
    ``AddressHasSecret`` if it may hold a password.
    """
    scheme, separator, rest = url.partition("://")
    if scheme.lower() not in SCHEMES or not separator or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("write an address such as postgresql://user@host:5432/fleet")
    try:
        parts = urlsplit(f"postgresql://{rest}")
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError("write an address such as postgresql://user@host:5432/fleet") from None
    user = unquote(parts.netloc.rpartition("@")[0])
    if ":" in user or "@" in user or "@" in unquote(parts.path) or _PASSWORD.search(unquote(rest)):
        raise AddressHasSecret
    for name, value in pairs:
        if name not in PARAMETERS:
            raise ValueError(f"after the question mark write only {', '.join(sorted(PARAMETERS))}")
        if (":" if name == "user" else "@") in value:
            raise AddressHasSecret
    if parts.fragment:
        raise ValueError("write an address without a #")
    return f"postgresql://{rest}"


def checked(url: str, needed_by: str) -> str:
    """Return *url*, the address in the option *needed_by*; raise ``ConfigInvalid`` if invalid."""
    try:
        return server_address(url)
    except ValueError as error:
        raise ConfigInvalid(f"{needed_by}: {error}.") from None


def connect(url: str, *, needed_by: str = "--to") -> Connection:
    """Connect to the server at *url*, an address without a secret.

    A lost connection is never opened again, because its session held the lock of a file.

    Raises ``ConfigInvalid`` for an invalid address or without psycopg, ``ServerLost`` if the server
    does not answer or refuses the connection.
    """
    url = checked(url, needed_by)
    require("psycopg", needed_by)
    try:
        import psycopg
    except ImportError:  # psycopg alone, without [binary] and without libpq
        raise ConfigInvalid(missing_sentence("psycopg", needed_by)) from None
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    given: dict[str, Any] = {}
    if "connect_timeout" not in dict(parse_qsl(urlsplit(url).query)):
        given["connect_timeout"] = ANSWER_WITHIN_S
    name = f"tracepaper {socket.gethostname()}:{os.getpid()}"
    try:
        driver = psycopg.connect(
            url, options=_KEEPALIVE, application_name=name, client_encoding="UTF8", **given
        )
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: driver,
            poolclass=NullPool,
            pool_reset_on_return=None,  # a rollback on a lost connection would be logged
            use_native_hstore=False,
        )
        event.listen(engine, "handle_error", lambda context: context.original_exception)
        return engine.connect()
    # A host name may raise UnicodeError; SQLAlchemy's first questions raise its DBAPIError.
    except (psycopg.Error, DBAPIError, UnicodeError) as error:
        raise ServerLost(_unreachable(url, error)) from None


def driver_of(server: Connection) -> Driver[Any]:
    """Return the driver's connection under SQLAlchemy's: for COPY and for cursors."""
    driver: Any = server.connection.driver_connection
    return driver


_ADVICE: Final = (
    ("no password supplied", f"give one by {_PASSWORD_PLACES}"),
    ("password authentication failed", f"correct it in {_PASSWORD_PLACES}"),
    ("pg_hba.conf", "add sslmode=require if the server asks for TLS, or let it admit the role"),
    ("SSL", "correct sslmode and sslrootcert of the address"),
    ("does not exist", "create it, or correct the address"),
    ("definition of service", "correct the service file"),
)


def _unreachable(url: str, error: Exception) -> str:
    message = reason_of(error)
    advice = next((advice for part, advice in _ADVICE if part in message), "")
    return (
        f"The fleet's server at {shown(url)} does not take the connection ({message}): "
        f"{advice or 'start it, or correct the address'}."
    )


def shown(url: str) -> str:
    """Return host and database of *url*, the only parts of it that messages show."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if not host and parts.path:  # the path alone would look like a local file
        return f"postgresql://{parts.path}"
    return f"{host}{parts.path}" or "the service's host"


def reason_of(error: Exception) -> str:
    """Return the server's error message on one line, without the password."""
    error = getattr(error, "orig", error)  # the driver's error within SQLAlchemy's
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    message = " ".join(str(primary or error).split()).rstrip(".")
    password = os.environ.get("PGPASSWORD")
    return message.replace(password, "…") if password else message


@contextmanager
def transaction(
    url: str,
    server: Connection,
    doing: str,
    *,
    advice: str = "grant it what docs/fleet.md shows",
) -> Iterator[None]:
    """Run the block in one transaction; turn its errors into one sentence about *doing*.

    Raises ``ServerLost`` if a later attempt may succeed, else ``DataInvalid``.
    """
    import psycopg

    try:
        with server.begin():
            try:
                yield
            except psycopg.Error:
                # A lost connection cannot roll back: its error would hide the first one.
                if not server.invalidated and driver_of(server).closed:
                    server.invalidate()
                raise
    except psycopg.errors.InsufficientPrivilege as error:
        raise ServerLost(
            f"The role at {shown(url)} may not {doing} ({reason_of(error)}): {advice}."
        ) from None
    except psycopg.DataError as error:
        raise DataInvalid(
            f"The server at {shown(url)} cannot {doing}, for it cannot hold a value "
            f"({reason_of(error)}): keep the file, and report this."
        ) from None
    except psycopg.Error as error:
        raise ServerLost(
            f"The server at {shown(url)} broke off when asked to {doing} ({reason_of(error)}); "
            "look at the server's log if this lasts."
        ) from None


def schema_version(server: Connection) -> int | None:
    """Return the version of the fleet's schema; None if there is none."""
    exists = server.exec_driver_sql(
        "SELECT to_regclass(%s) IS NOT NULL", (f"{SCHEMA_NAME}.schema_version",)
    ).scalar()
    if not exists:
        return None
    version: int | None = server.exec_driver_sql("SELECT version FROM schema_version").scalar()
    return version


def check_schema(url: str, server: Connection) -> None:
    """Raise ``DataInvalid`` unless the schema at *url* is this version's."""
    with transaction(url, server, "read the schema's version"):
        version = schema_version(server)
    check_version(url, version)


def check_rights(url: str, server: Connection, rights: Mapping[str, Sequence[str]]) -> None:
    """Raise ``ServerLost`` if the server is read-only or the role lacks one of *rights*.

    *rights* are tables by privilege, such as ``INSERT``.
    """
    wanted = [(right, table) for right, tables in rights.items() for table in tables]
    query = (
        "SELECT DISTINCT wanted.a FROM unnest(%s::text[], %s::text[]) AS wanted(a, b) "
        "WHERE NOT has_table_privilege(wanted.b, wanted.a) ORDER BY wanted.a"
    )
    of_wanted = tuple(map(list, zip(*wanted, strict=True)))
    with transaction(url, server, "say what it may do"):
        is_standby = server.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"
        missing = server.exec_driver_sql(query, of_wanted).scalars().all()
    if is_standby:
        raise ServerLost(
            f"The server at {shown(url)} takes no writes, as a standby does: name the primary, "
            "or end the address with ?target_session_attrs=read-write."
        )
    if missing:
        raise ServerLost(
            f"The role at {shown(url)} lacks {', '.join(missing)} on tables of the fleet: grant it "
            "what docs/fleet.md shows."
        )


def check_version(url: str, version: int | None) -> None:
    """Raise ``DataInvalid`` unless *version*, the server's schema, is this version's."""
    if version is None:
        raise DataInvalid(
            f"{shown(url)} holds no record of a fleet: make its tables with `tracepaper db create "
            "--to URL`, as a role that may create a schema."
        )
    if version != SCHEMA:
        raise DataInvalid(
            f"{shown(url)} has schema {version}, and this version reads {SCHEMA}: use the "
            "tracepaper that made it, or another database of the server."
        )
