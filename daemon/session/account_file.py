"""An account as JSON, from the end of a record and at the beginning of another."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.carried_account import FORMAT, CarriedAccount
from tracepaper.daemon.session.universe import symbols_of
from tracepaper.storage.chain.integrity import audit_runs
from tracepaper.storage.database.lock import holder_of
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import RunKind


def account_at_end(path: Path, reader: Reader, *, is_own: bool = False) -> CarriedAccount:
    """Return the account at the end of the newest live run of *path*, once its chain is checked.

    A process that wrote the run itself needs no check (*is_own*). Raises ``DataInvalid`` if there
    is no account.
    """
    run = reader.newest(RunKind.LIVE)
    if run is None or not reader.counted(run.run_id)[1]:
        raise DataInvalid(f"{path} holds no live run with a step, so no account that could go on.")
    for audited in () if is_own else audit_runs(reader.connection, [run.run_id]):
        if audited.problem is not None:
            raise DataInvalid(f"{audited.problem.sentence} Restore a backup of {path} first.")
    if (account := CarriedAccount.of(reader, run)) is None:
        raise DataInvalid(f"Run {run.run_id} of {path} stored no state, so no account can go on.")
    return account


def exported(path: Path) -> CarriedAccount:
    """Return the account of *path*; raise ``ConfigInvalid`` while a daemon still changes it."""
    if (holder := holder_of(path)) is not None:
        raise ConfigInvalid(f"{path} is in use by process {holder.pid}; stop it first.")
    with Reader.open(path) as reader:
        return account_at_end(path, reader)


def begin_with(file: Path, path: Path, config: Config) -> None:
    """Let the first live run of the empty or absent database *path* begin with the account *file*.

    A database that began with it already is left alone. Raises ``ConfigInvalid`` or
    ``DataInvalid``, and then writes nothing.
    """
    account = _given(file)
    market = config.market
    symbols = market.symbols if market.universe is None else symbols_of(config, account.market)
    if {item.id for item in account.instruments} != {
        f"{market.category}:{name}" for name in symbols
    }:
        names = ", ".join(item.id for item in account.instruments)
        raise ConfigInvalid(
            f"{file} is an account in {names}, and [market] names others; an account keeps its "
            "symbols."
        )
    if path.exists():
        with Reader.open(path) as reader:
            query = "SELECT account FROM begins UNION ALL SELECT account FROM runs"
            accounts = reader.connection.execute(query).fetchall()
        if (account.json(),) in accounts:
            return
        if accounts:
            raise ConfigInvalid(
                f"{path} has runs or an account already, and --account begins an empty database; "
                "name a new file with --db."
            )
    with closing(open_writer(path)) as writer:
        writer.driver.execute("INSERT INTO begins VALUES (?)", (account.json(),))


def _given(file: Path) -> CarriedAccount:
    """Return the account in *file*; raise ``DataInvalid`` if it is none or does not add up."""
    try:
        content = file.read_bytes()
        written = msgspec.json.decode(content)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigInvalid(f"{file} cannot be read as JSON ({error}); name another.") from None
    if not isinstance(written, dict) or written.get("format") != FORMAT:
        raise DataInvalid(
            f"{file} is no account of format {FORMAT}; `tracepaper account export` writes one."
        )
    try:
        account = msgspec.convert(written, CarriedAccount)
        account = CarriedAccount.read(account.json())
    except msgspec.ValidationError as error:
        raise DataInvalid(f"{file} is no account: {error}.") from None
    for name, is_now, due in account.sums():
        if is_now != due:
            raise DataInvalid(
                f"{file} does not add up: {name} is {is_now}, and the rest gives {due}; export it "
                "again."
            )
    return account
