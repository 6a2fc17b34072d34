"""``config check`` builds all that ``run`` builds, and rejects what could not start."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from builders import instrument
from bybit_server import ScriptedServer
from daemon_under_test import daemon, settings
from records import rows, tamper
from user_strategies import importable

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.bundled_bars import asked_over_bundled_bars
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.run_row import reject_size
from tracepaper.storage.checkpoints import CARD_NAME, DEFAULT_CHECKPOINT, WEIGHTS_NAME, keep
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, Fatal, StrategyFailed
from tracepaper.strategies.indicators import sma
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import ModelChange, RunKind

SMA = '[strategy]\nname = "sma_cross"\n'
OWN = f'[strategy]\nname = "{__name__}:Picky"\n'


MADE: list[Strategy] = []
"""Every object of the class below, in the order of making."""


class Picky(Strategy):
    """Accepts one option only."""

    def __init__(self, options: dict[str, object]) -> None:
        if set(options) - {"fast"}:
            raise ValueError("it knows fast alone")
        self.warmup = int(str(options.get("fast", 1)))
        MADE.append(self)

    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.HOLD, "picky")


def fixed(quantity: str) -> str:
    return f'{SMA}[sizing]\nmode = "fixed"\nquantity = "{quantity}"\n'


REFUSED = {
    "a size that fills the memory": (fixed("1e999999999"), "no more than 40 digits"),
    "more digits than are read": (SMA + f"[gate]\nlate_ms = 1{'0' * 5000}\n", "is not TOML"),
    "a device there is not": ('[model]\ndevice = "cuda:99"\n', r"model\.device|cuda"),
    "a backend there is not": ('[model]\nbackend = "flash_attn"\n', r"model\.backend"),
    "no checkpoint": ('[model]\ncheckpoint = "nowhere"\n', "nowhere"),
    "a damaged checkpoint": ('[model]\ncheckpoint = "damaged"\n', "SHA-256"),
    "no such horizon": ("[gate]\nhorizon = 7\n", r"gate\.horizon is 7, and the model forecasts"),
    "no such quantile": ('[gate]\nconfidence = "q0.001"\n', "or q0.01 to q0.99"),
    "no such module": ('[strategy]\nname = "nowhere:Class"\n', "cannot be imported"),
    "a module of Python": (
        '[strategy]\nname = "signal:Mine"\n',
        "signal is a module of Python itself; give your file another name, such as my_signal.py",
    ),
    "no such class": (
        f'[strategy]\nname = "{__name__}:Nobody"\n',
        r"has .*; correct the name after the colon",
    ),
    "a module without a class": ('[strategy]\nname = "unmade:Class"\n', "has no class; correct"),
    "a class that is no strategy": ('[strategy]\nname = "decimal:Decimal"\n', "derive from"),
    "options that it refuses": (OWN + "[strategy.options]\nslow = 3\n", "it knows fast alone"),
    "a warm-up of nothing": (OWN + "[strategy.options]\nfast = 0\n", r"warmup is 0"),
    "a database that is a folder": (SMA + '[storage]\nurl = "sqlite:///damaged"\n', "is a folder"),
    "a stranger's database": (SMA + '[storage]\nurl = "sqlite:///words.db"\n', "words.db"),
    "a file for a folder": (
        SMA + '[storage]\nurl = "sqlite:///words.db/a/b.db"\n',
        "cannot be created",
    ),
}


@pytest.fixture
def place(here: Path) -> Path:
    """Change to a folder with a damaged checkpoint and a text file."""
    shutil.copytree(DEFAULT_CHECKPOINT, here / "damaged")
    weights = here / "damaged" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    (here / "unmade.py").write_text("")
    (here / "words.db").write_text("these are words and no database at all\n")
    return here


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_start_is_refused_in_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    text, words = REFUSED[case]
    (place / "paper.toml").write_text(text)
    before = sorted(path.name for path in place.rglob("*"))
    assert invoke(["config", "check", "-c", "paper.toml"]) == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, sentence), sentence
    assert sentence.endswith(".")
    assert sorted(path.name for path in place.rglob("*")) == before


def of_another_version(path: Path) -> None:
    open_writer(path).close()
    tamper(path, "PRAGMA user_version = 1")


def locked(path: Path) -> sqlite3.Connection:
    """Return a connection that holds an exclusive lock on the file."""
    open_writer(path).close()
    other = sqlite3.connect(path)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    return other


UNUSABLE: dict[str, tuple[Callable[[Path], object], type[Fatal], str]] = {
    "of another version": (of_another_version, ConfigInvalid, "has schema 1"),
    "words": (lambda at: at.write_text("no database\n" * 99), ConfigInvalid, "is no database"),
    "a folder": (Path.mkdir, ConfigInvalid, "is a folder"),
    "locked": (locked, DataInvalid, "end the transaction of the other process"),
}
"""What is at the database's path, with the error and its message."""


@pytest.mark.parametrize("what", UNUSABLE)
async def test_a_database_that_no_start_can_use_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("tracepaper.storage.database.connection.BUSY_TIMEOUT_S", 0.0)
    prepare, kind, words = UNUSABLE[what]
    held = prepare(tmp_path / "run.db")
    with pytest.raises(kind, match=words):
        await Daemon(load(), tmp_path / "run.db", kind=RunKind.LIVE).run()
    if isinstance(held, sqlite3.Connection):
        held.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1_000])


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights that were cut off": (lambda at: cut(at / WEIGHTS_NAME), r"The weights in {at} have"),
    "no weights": (lambda at: (at / WEIGHTS_NAME).unlink(), r"weights.safetensors cannot be read"),
    "a card that was cut off": (lambda at: cut(at / CARD_NAME), "card.toml"),
}
"""Faults of a checkpoint's folder, and the part of the message that names each."""


@pytest.mark.parametrize("is_kept", [False, True], ids=["configured", "kept"])
@pytest.mark.parametrize("what", DAMAGED)
async def test_a_damaged_checkpoint_is_wrong_usage(
    tmp_path: Path, what: str, *, is_kept: bool
) -> None:
    # Exit code 2, so that systemd does not start it for ever.
    damage, words = DAMAGED[what]
    given, database = tmp_path / "given", tmp_path / "run.db"
    shutil.copytree(DEFAULT_CHECKPOINT, given)
    damaged = keep(given, database) if is_kept else given
    damage(damaged)
    config = load(None, {"model": {"checkpoint": str(given)}})
    with pytest.raises(ConfigInvalid, match=words.format(at=re.escape(str(damaged)))) as error:
        await Daemon(config, database, kind=RunKind.LIVE).run()
    assert str(damaged) in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ("raise ValueError('it is no module')", True),
        ("raise SystemExit", True),
        ("{", True),
        ("{STRATEGY}def __init__(self, options): raise ZeroDivisionError", True),
        ("{STRATEGY}shadows = 3", True),
        # Errors of the outside world may pass.
        ("{STRATEGY}def __init__(self, options): raise TimeoutError", False),
        ("raise ConnectionError", False),
    ],
)
async def test_a_class_that_cannot_be_made_is_wrong_usage(
    tmp_path: Path, body: str, *, usage: bool
) -> None:
    head = "from tracepaper.strategies.api.strategy import Strategy\nclass Mine(Strategy):\n    "
    head += "def decide(self, now): return None\n    "
    (tmp_path / "unmade.py").write_text(body.replace("{STRATEGY}", head))
    config = load(None, {"strategy": {"name": "unmade:Mine"}})
    with importable(tmp_path), pytest.raises(ConfigInvalid if usage else StrategyFailed) as error:
        await Daemon(config, tmp_path / "run.db", kind=RunKind.LIVE).run()
    assert str(error.value).endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        "",
        SMA,
        fixed("1500"),
        fixed("0.0000000001"),
        OWN + "[strategy.options]\nfast = 3\n",
        SMA + '[storage]\nurl = "sqlite:///new/folder/run.db"\n',
        SMA + '[market]\ncategory = "spot"\nsymbols = ["NEWCOINUSDT"]\n',
        fixed("9000000") + '[execution]\nfilters = "data"\n',
    ],
)
def test_what_can_start_is_accepted_and_nothing_is_made(
    place: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (place / "paper.toml").write_text(text)
    before = sorted(path.name for path in place.rglob("*"))
    assert invoke(["config", "check", "-c", "paper.toml"]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in place.rglob("*")) == before


# ---------------------------------------------------------------- rules of the exchange


@pytest.mark.parametrize(
    ("sizing", "words"),
    [
        ({"mode": "fixed", "quantity": "0.01"}, ""),
        ({"mode": "fixed", "quantity": "0.009"}, "below 0.01, the least order"),
        ({"mode": "fixed", "quantity": "1.5"}, ""),
        ({"mode": "fixed", "quantity": "1.501"}, "above 1.5, the largest order"),
        ({"mode": "notional", "notional": "5"}, ""),
        ({"mode": "tanh", "notional": "4.99"}, "below 5, the least order"),
        ({"mode": "fixed", "quantity": "0.0105"}, "more than 3 decimals"),
    ],
)
def test_a_size_that_the_exchange_never_takes_is_refused(
    sizing: dict[str, str], words: str
) -> None:
    item = instrument(min_quantity=10, max_quantity=1_500, min_notional=5 * 10**8)
    config = load(None, {"sizing": sizing})
    with pytest.raises(ConfigInvalid, match=words) if words else nullcontext():
        reject_size(config, item)


async def test_a_daemon_whose_size_is_no_order_leaves_no_run(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        given = settings(server, sizing={"quantity": "151"})
        with pytest.raises(ConfigInvalid, match="above 150, the largest order of linear:BTCUSDT"):
            await Daemon(load(None, given), database, kind=RunKind.LIVE).run()
    assert rows(database, "SELECT count(*) FROM runs")[0] == (0,)


async def test_once_served_a_size_that_became_too_large_is_no_fault_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, database) as running:
            await running.close_bars(1)

        def refuses(*_given: object) -> None:
            raise ConfigInvalid("asked again")

        monkeypatch.setattr("tracepaper.daemon.session.daemon.reject_size", refuses)
        async with daemon(server, database) as running:
            await running.until(
                lambda: any(isinstance(s.event, ModelChange) for s in running.steps)
            )
    assert rows(database, "SELECT count(*) FROM runs")[0] == (1,), "it went on with its run"


async def test_what_is_wrong_here_is_said_before_the_network_is(tmp_path: Path) -> None:
    config = load(
        None,
        {
            "exchange": {"rest_url": "http://127.0.0.1:1"},
            "strategy": {"name": f"{__name__}:Picky", "options": {"slow": 1}},
        },
    )
    with pytest.raises(ConfigInvalid, match="it knows fast alone"):
        await Daemon(config, tmp_path / "run.db", kind=RunKind.LIVE).run()


async def test_a_start_makes_a_users_class_once(tmp_path: Path) -> None:
    strategy = {"name": f"{__name__}:Picky", "options": {"fast": 2}}
    MADE.clear()
    async with ScriptedServer() as server:
        async with daemon(server, tmp_path / "run.db", strategy=strategy) as running:
            await running.close_bars(3)
        assert len(MADE) == 1
        async with daemon(server, tmp_path / "run.db", strategy=strategy) as running:  # it goes on
            await running.until(lambda: running.steps)
        assert len(MADE) == 2


class NeedsModel(Strategy):
    needs_forecast = True

    def decide(self, context: BarContext) -> Signal:
        raise AssertionError(context)


class FailsAtTenth(Strategy):
    """Raises at its tenth bar."""

    bars = 0

    def decide(self, context: BarContext) -> Signal:
        self.bars += 1
        return Signal(Action.HOLD, f"{context.close / (10 - self.bars)}")


class ShortOfNothing(Strategy):
    """Is short where its average has no value, which is everywhere."""

    warmup = 1

    def decide(self, context: BarContext) -> Signal:
        is_above = context.close > sma(context.history.close, 50)[-1]
        return Signal(Action.LONG if is_above else Action.SHORT, "by the average")


def test_a_class_is_tried_on_bundled_bars() -> None:
    def tried(cls: type, **sections: dict[str, Any]) -> str:
        strategy = {"name": f"{__name__}:{cls.__name__}"}
        sizing = {"mode": "fixed", "quantity": "0.1"}
        return asked_over_bundled_bars(
            load(None, {"strategy": strategy, "sizing": sizing, **sections})
        )

    assert tried(ShortOfNothing, market={"symbols": ["ETHUSDT"], "interval": "60"}) == (
        "Tried on 122 bundled bars, it asked for a position on 122. Its reason on 122: by the "
        "average; sma(…, 50) has no value with 1 bar of history: set warmup = 50 or more."
    )
    assert tried(NeedsModel).startswith("It was not tried on bundled bars: it needs a model's")
    failed = r"ZeroDivisionError: .*test_preflight\.py:\d+ for bundled bar 10 of BTCUSDT"
    with pytest.raises(ConfigInvalid, match=failed):
        tried(FailsAtTenth)
    assert not asked_over_bundled_bars(load(None, {}))
