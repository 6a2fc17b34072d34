"""``tracepaper.backtest``: the command's own run, from a notebook, a thread or a loop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from programs import environment, run
from records import identities
from stock_files import HOUR_MS, opens, write
from user_strategies import importable
from waiting import deadline_s

import tracepaper
from tracepaper import Action, ConfigInvalid, DataInvalid, Percent, Signal, Strategy, StrategyFailed
from tracepaper.daemon.cli import invoke
from tracepaper.daemon.session.user_class import known_class, user_class
from tracepaper.replay import dataframes
from tracepaper.replay.api import backtest
from tracepaper.replay.archive import read_candles
from tracepaper.replay.checks.identity import DecisionIdentity
from tracepaper.replay.run import Run
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.database.reader import Reader

BARS = 1_500
PARAMS = {"fast": 5, "slow": 20}
SIZED = {"sizing": {"mode": "fixed", "quantity": "0.1"}}
CSV = pl.read_csv(str(DEMO_CANDLES)).head(BARS)
MOMENTS = pl.col("open_time").cast(pl.Datetime("ms")).alias("time")


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "BTCUSDT-1m.csv"
    CSV.write_csv(path)
    return path


@pytest.fixture(scope="module")
def sma_run(candles: Path, tmp_path_factory: pytest.TempPathFactory) -> Run[Any]:
    database = tmp_path_factory.mktemp("made") / "run.db"
    return backtest("sma_cross", candles, params=PARAMS, config=SIZED, db=database)


class Follows(Strategy):
    """Long after a rising bar."""

    def __init__(self, least: int = 0) -> None:
        self.warmup = 1
        self._least, self._moved = least, 0

    def observe(self, bar: Any) -> None:
        self._moved = bar.close - bar.open

    def decide(self, context: Any) -> Signal:
        return Signal(Action.LONG if self._moved > self._least else Action.FLAT, "it rose or not")


def test_the_command_and_the_function_decide_alike(sma_run: Run[Any], candles: Path) -> None:
    config = sma_run.database.parent / "sma.toml"
    config.write_text(
        '[strategy]\nname = "sma_cross"\nfast = 5\nslow = 20\n'
        '[sizing]\nmode = "fixed"\nquantity = "0.1"\n'
    )
    other = sma_run.database.parent / "command.db"
    given = ("replay", "--data", str(candles), "-c", str(config), "--db", str(other), "--json")
    document = json.loads(run(given, sma_run.database.parent).out)
    assert identities(other) == identities(sma_run.database)
    assert document["decisions"] == BARS
    with Reader.open(other) as reader, Reader.open(sma_run.database) as two:
        rows = [reader.run(reader.find("last")).config_sha256 for reader in (reader, two)]
    assert rows[0] == rows[1]


def test_frames_have_the_rows_of_the_record(sma_run: Run[Any]) -> None:
    assert sma_run.decisions.height == BARS
    assert sma_run.fills.height == sma_run.orders.height > 20
    assert sma_run.trades.height == sma_run.summary["trades"]
    assert sma_run.trades.height > 10
    assert sma_run.trades["closed_utc"].dtype == pl.Datetime("ms", "UTC")
    assert (sma_run.trades["closed_ms"] > sma_run.trades["opened_ms"]).all()
    assert sma_run.equity["equity"][-1] == pytest.approx(sma_run.summary["end"])
    assert sma_run.bars.height == BARS


def test_an_opened_run_answers_as_the_run_that_was_made(sma_run: Run[Any]) -> None:
    opened = tracepaper.open_run("last", sma_run.database)
    assert repr(opened) == repr(tracepaper.open_run(sma_run.database)) == repr(sma_run)
    assert opened.summary == sma_run.summary
    assert opened.trades.equals(sma_run.trades)
    assert opened.explain(-1).text == sma_run.explain(-1).text
    assert opened.verify().passes
    changes = {"execution": {"taker_fee": "0.01"}}
    assert opened.what_if(changes).document == sma_run.what_if(changes).document
    assert repr(opened.plot()) == repr(sma_run.plot())


def test_without_polars_frames_are_columns_of_numpy(
    sma_run: Run[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracepaper.replay.dataframes.importlib.util.find_spec", lambda _name: None)
    plain: Run[Any] = Run(sma_run.database, sma_run.run_id)
    assert isinstance(plain.trades, dataframes.NumpyFrame)
    assert plain.trades["profit"].tolist() == sma_run.trades["profit"].to_list()
    assert plain.trades["closed_utc"].dtype == "M8[ms]"
    assert plain.decisions.height == BARS
    assert plain.decisions["allowed"].dtype == np.bool_
    assert np.isnan(plain.decisions["mean_return"]).all()
    assert plain.equity["equity"][-1] == sma_run.equity["equity"][-1]
    assert f"{BARS:,} rows of run_id, sequence" in repr(plain.decisions)


def test_frames_are_those_of_the_data_or_those_asked_for(sma_run: Run[Any]) -> None:
    candles = CSV.to_pandas().head(400)
    given: dict[str, Any] = {"params": {"fast": 5, "slow": 20}}
    with tracepaper.backtest("sma_cross", {"BTCUSDT": candles}, **given) as run:
        assert isinstance(run.trades, pd.DataFrame)
        assert isinstance(run.equity, pd.DataFrame)
    with tracepaper.backtest("sma_cross", {"BTCUSDT": candles}, frames="polars", **given) as run:
        assert isinstance(run.trades, pl.DataFrame)
    with tracepaper.backtest("sma_cross", {"BTCUSDT": pl.from_pandas(candles)}, **given) as run:
        assert isinstance(run.trades, pl.DataFrame)
    with pytest.raises(ConfigInvalid, match="There are no spark frames; write polars, pandas or"):
        tracepaper.backtest("sma_cross", candles, frames="spark", **given)  # type: ignore[arg-type]


def test_stats_are_the_summary_as_a_series(sma_run: Run[Any]) -> None:
    assert isinstance(sma_run.stats, pd.Series)
    assert sma_run.stats.name == "sma_cross"
    assert dict(sma_run.stats) == dict(sma_run.summary)


def test_the_chart_is_that_of_the_command(sma_run: Run[Any], tmp_path: Path) -> None:
    of_call, of_command = tmp_path / "call.svg", tmp_path / "command.svg"
    assert "closed trades" in sma_run.report(chart=of_call, last=300).text.lower()
    given = ("report", "last", "--db", str(sma_run.database), "--chart", str(of_command))
    assert run((*given, "--last", "300"), tmp_path).code == 0
    assert of_call.read_bytes() == of_command.read_bytes()
    sma_run.report(chart=tmp_path / "all.svg")
    assert len((tmp_path / "all.svg").read_bytes()) > len(of_call.read_bytes())


def test_a_decision_is_explained_by_its_sequence_or_from_the_end(sma_run: Run[Any]) -> None:
    last = sma_run.decisions["sequence"][-1]
    assert sma_run.explain()["decision"]["sequence"] == last
    assert sma_run.explain(-2)["decision"]["sequence"] == last - 1
    assert sma_run.explain(last).text == sma_run.explain().text
    with pytest.raises(DataInvalid, match=r"1,500 decisions; -1501 is before the first"):
        sma_run.explain(-1501)
    with pytest.raises(ConfigInvalid, match=r"1\.5 is no decision"):
        sma_run.explain(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame",
    [
        CSV,
        CSV.with_columns(MOMENTS).drop("open_time"),
        CSV.to_pandas(),
        CSV.with_columns(MOMENTS).drop("open_time").to_pandas().set_index("time"),
        CSV.to_pandas().set_index(pd.to_datetime(CSV["open_time"].to_numpy(), unit="ms", utc=True)
                                  .tz_convert("Asia/Tokyo")).drop(columns="open_time"),
        {name: CSV[name].to_list() for name in CSV.columns},
        {name: CSV[name].to_numpy() for name in CSV.columns},
    ],
    ids=["polars", "polars moments", "pandas", "pandas index", "pandas zone", "lists", "numpy"],
)  # fmt: skip
def test_a_frame_is_read_as_its_file_is(frame: Any, sma_run: Run[Any]) -> None:
    with backtest("sma_cross", {"BTCUSDT": frame}, params=PARAMS, config=SIZED) as run:
        assert identities(run.database) == identities(sma_run.database)


def test_a_frame_of_shares_is_laid_upon_its_sessions_as_a_file_is(tmp_path: Path) -> None:
    shares = tmp_path / "acme.csv"
    write(shares, opens("2014-10-20", "2014-12-31", HOUR_MS))
    config = {"market": {"asset": "stock"}}
    given: dict[str, Any] = {"params": {"fast": 3, "slow": 7}, "config": config}
    with backtest("sma_cross", f"ACME={shares}", **given) as of_file:
        with backtest("sma_cross", {"ACME": pl.read_csv(shares)}, **given) as of_frame:
            assert identities(of_frame.database) == identities(of_file.database)
            assert of_frame.summary == of_file.summary
        assert of_file.decisions["refused_by"].drop_nulls().unique().to_list() == ["warm"]


def test_a_column_is_chosen_alike_in_a_file_a_frame_and_the_command(
    sma_run: Run[Any], tmp_path: Path
) -> None:
    other = CSV.rename({"close": "Settle"}).with_columns(Last=pl.col("open"), Amount=pl.lit(1.5))
    path = tmp_path / "BTCUSDT-1m.csv"
    other.write_csv(path)
    columns = {"close": "settle", "turnover": None}
    given: Any = {"params": PARAMS, "config": SIZED, "columns": columns}
    for data in (path, {"BTCUSDT": other}):
        with backtest("sma_cross", data, **given) as run:
            assert identities(run.database) == identities(sma_run.database)
            with Reader.open(run.database) as reader:
                assert "by --columns" in " ".join(reader.run(run.run_id).warnings)
    with pytest.raises(ConfigInvalid, match="read already"):
        backtest("sma_cross", read_candles(DEMO_CANDLES), **given)
    with pytest.raises(ConfigInvalid, match="columns is 'close'"):
        backtest("sma_cross", path, **{**given, "columns": "close"})
    tried = tracepaper.sweep(
        "sma_cross", path, {"fast": [5, 6]}, "return", jobs=1, progress=False,
        params={"slow": 20}, config=SIZED, columns=columns, state=tmp_path / "sweep.db",
    )  # fmt: skip
    assert tried.best is not None
    assert "--columns close=settle --columns turnover=" in str(tried.command)


def test_a_frame_takes_the_configured_symbol(sma_run: Run[Any]) -> None:
    config = {**SIZED, "market": {"symbols": "BTCUSDT"}}
    with backtest("sma_cross", CSV, params=PARAMS, config=config) as run:
        assert identities(run.database) == identities(sma_run.database)


class Bracketed(Strategy):
    """Long between a stop and a target."""

    def decide(self, context: Any) -> Signal:
        stop, target = Percent(0.5), Percent(0.5)
        return Signal(Action.LONG, "always", stop=stop, target=target, reenter=True)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "OWNUSDT"])
@pytest.mark.parametrize("level", [0.00003, 1.0, 31_768.0, 1e6])
def test_a_random_walk_of_doubles_is_traded_at_any_level(
    level: float, symbol: str, tmp_path: Path
) -> None:
    closes = level * np.exp(np.random.default_rng(7).normal(0, 0.003, 400).cumsum())
    opens_ = np.append(level, closes[:-1])
    columns = {
        "open": opens_,
        "high": np.maximum(opens_, closes) * 1.001,
        "low": np.minimum(opens_, closes) * 0.999,
        "close": closes,
        "volume": closes / 7,
    }
    frame = pd.DataFrame(columns, index=pd.date_range("2024-01-01", periods=400, freq="h"))
    frame.rename_axis("time").to_csv(tmp_path / f"{symbol}_1h.csv")
    runs = [backtest(Bracketed, data) for data in ({symbol: frame}, tmp_path / f"{symbol}_1h.csv")]
    trades, again = (run.trades for run in runs)
    assert trades["profit"].to_list() == again["profit"].to_list()
    assert len(trades) > 20
    assert {*trades["exit_reason"]} >= {"stop 0.5 %", "target 0.5 %"}


def test_candles_and_several_symbols(candles: Path) -> None:
    btc = read_candles(candles)
    with backtest("persistence", [btc, f"ETHUSDT={candles}"], config=SIZED) as run:
        assert sorted(run.decisions["instrument"].unique()) == [
            "linear:BTCUSDT",
            "linear:ETHUSDT",
        ]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (CSV, "does not name its symbol"),
        ([], "There are no data"),
        (3, "data is 3; give a path"),
        ({"BTCUSDT": CSV.drop("close")}, "no column close"),
        ({"BTCUSDT": CSV.head(0)}, "is empty"),
        ({"BTCUSDT": {"time": [1], "open": [1.0, 2.0]}}, "different lengths"),
        ({"BTCUSDT": CSV.with_columns(high=pl.lit(1.0))}, "the frame: row 1"),
        (
            {"BTCUSDT": CSV.with_columns(pl.lit("soon").alias(CSV.columns[0]))},
            'columns by columns={"open_time": "NAME"}, or convert it',
        ),
        ({"BTCUSDT": CSV.with_columns(open=pl.lit(None, pl.Float64))}, "row 1: open is empty"),
        ({"BTCUSDT": {**{name: [1] for name in CSV.columns}, "open": [[1, 2]]}}, "single values"),
        ("nowhere.csv", "nowhere.csv"),
    ],
)
def test_data_that_cannot_be_used_get_one_sentence(data: Any, sentence: str) -> None:
    with pytest.raises((ConfigInvalid, DataInvalid), match=sentence):
        backtest("sma_cross", data)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"strategy": "sma_cros"}, "trend .*sma_cross, .*module:Class"),
        ({"strategy": Follows()}, "or the class itself"),
        ({"strategy": int}, "derive from it"),
        ({"strategy": None, "params": {"fast": 3}}, "name it as the first argument"),
        ({"params": {"fats": 3}}, "the call of backtest: .* no key 'fats'; the nearest is 'fast'"),
        ({"params": {"fast": float("nan")}}, "params: .* give finite numbers"),
        ({"config": 3}, 'config is 3; give a TOML file, .* such as {"account"'),
        ({"config": {"sizing": {"quantiti": 1}}}, "that was given: .* no key 'quantiti'"),
        ({"strategy": Follows, "params": {"most": 3}}, "refused .* 'most'"),
        ({"strategy": "__main__:Lost"}, "typed in a session or a script that is not here"),
    ],
)
def test_wrong_usage_gets_one_sentence(given: dict[str, Any], sentence: str, candles: Path) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        backtest(**{"strategy": "sma_cross", "data": candles, **given})


def test_params_of_numpy_are_stored_as_numbers(candles: Path) -> None:
    given = {"least": np.int64(7)}
    with backtest(Follows, candles, params=given, config=SIZED) as run:
        stored = json.loads(run.row["config"])["strategy"]["options"]
        assert stored == {"least": 7}
        assert run.verify().passes
        changed = run.what_if({"execution": {"taker_fee": "0.01"}})
        assert "execution.taker_fee" in changed.text
        assert (
            changed["accounts"]["rows"][1]["fees_paid"]
            > changed["accounts"]["rows"][0]["fees_paid"]
        )


def test_params_lie_over_the_options_that_are_configured_for_this_class(
    candles: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from tracepaper import Action, Signal, Strategy\n\n\nclass Own(Strategy):\n"
        "    def __init__(self, options):\n        assert options == {'a': 1, 'b': 3}\n\n"
        "    def decide(self, now):\n        return Signal(Action.HOLD, 'nothing')\n"
    )
    config = {"strategy": {"name": "own:Own", "options": {"a": 1, "b": 2}}}
    with importable(tmp_path):
        with backtest("own:Own", candles, params={"b": 3}, config=config, end="2025-05-26T08:00"):
            pass
        cls = import_module("own").Own
        with backtest(cls, candles, params={"b": 3}, config=config, end="2025-05-26T08:00") as done:
            assert done.row["strategy"] == "own:Own"
            assert json.loads(done.row["warnings"]) == []


def test_a_class_of_a_module_is_verified_by_another_process(candles: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tracepaper import Action, Signal, Strategy\n\n\nclass Mine(Strategy):\n"
        "    def decide(self, now):\n        return Signal(Action.LONG, 'always')\n"
    )
    with importable(tmp_path):
        made_of = import_module("mine").Mine
        backtest(made_of, candles, config=SIZED, db=tmp_path / "mine.db", end="2025-05-26T08:00")
    checked = run(("verify", "last", "--db", "mine.db"), tmp_path)
    assert checked.code == 0, checked
    assert "28 of 28 decisions follow" in checked.out


def test_a_file_that_was_edited_is_imported_again(candles: Path, tmp_path: Path) -> None:
    def write(reason: str) -> None:
        """Write the class within the second, and in the size, that Python's bytecode knows."""
        (tmp_path / "edited.py").write_text(
            "from tracepaper import Action, Signal, Strategy\nfrom told import REASON\n\n\n"
            "class Edited(Strategy):\n    def decide(self, now):\n"
            "        return Signal(Action.LONG, REASON)\n"
        )
        (tmp_path / "told.py").write_text(f"REASON = {reason!r}\n")
        os.utime(tmp_path / "told.py", (1_750_000_000, 1_750_000_000))

    def decided(strategy: Any) -> set[str]:
        with backtest(strategy, candles, config=SIZED, end="2025-05-26T08:00") as made:
            return set(made.decisions["reason"])

    write("one")
    with importable(tmp_path):
        sys.dont_write_bytecode = False
        held = import_module("edited").Edited
        assert decided(held) == {"one"}
        write("two")
        with pytest.raises(ConfigInvalid, match="import it again: from edited import Edited"):
            decided(held)
        with pytest.raises(ConfigInvalid, match="import it again"):
            tracepaper.sweep(held, candles, {"sizing.quantity": ["0.1", "0.2"]}, "return")
        assert decided("edited:Edited") == {"two"}


TYPED = """
import tracepaper
from tracepaper import Action, Signal, Strategy

class Typed(Strategy):
    def decide(self, now):
        return Signal(Action.LONG, "always")

def made(text):
    names = {"Strategy": Strategy, "Signal": Signal, "Action": Action, "__name__": "__main__"}
    exec(text, names)
    return names["Typed"]

text = "class Typed(Strategy):\\n def decide(self, now):\\n  return Signal(Action.FLAT, 'no')"
for of in (Typed, made(text)):
    run = tracepaper.backtest(of, CANDLES, end="2025-05-26T08:00", db=f"{of is Typed}.db")
    print(run.row["strategy"], run.verify().passes, run.row["strategy_sha256"][:8])
    print(run.row["warnings"])
"""


def test_a_typed_class_runs_here_and_is_refused_elsewhere(candles: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TYPED.replace("CANDLES", repr(str(candles)))],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=deadline_s(),
    )
    first, line, second, _ = done.stdout.splitlines()
    assert first.startswith("__main__:Typed True")
    assert second.startswith("__main__:Typed True")
    assert first != second  # two classes of one name have two ids
    assert "no other process can import the class Typed" in line
    assert "Python keeps no source of the class Typed" in done.stderr
    elsewhere = run(("verify", "last", "--db", "True.db"), tmp_path)
    assert elsewhere.code == 2
    assert "typed in a session or a script that is not here; put it into a module" in elsewhere.err


def test_two_classes_of_one_name_in_two_threads_do_not_meet(candles: Path) -> None:
    def made_of(action: Action) -> type[Strategy]:
        class Local(Strategy):
            def decide(self, context: Any) -> Signal:
                return Signal(action, "always")

        return Local

    def traded(action: Action) -> set[str]:
        with backtest(made_of(action), candles, config=SIZED) as run:
            assert run.verify().passes
            return set(run.decisions["action"].unique())

    with ThreadPoolExecutor(2) as pool:
        long, short = pool.map(traded, (Action.LONG, Action.SHORT))
    assert (long, short) == ({"LONG"}, {"SHORT"})


def test_a_class_that_was_handed_over_is_forgotten_afterwards() -> None:
    class Gone(Strategy):
        def decide(self, context: Any) -> Signal:
            return Signal(Action.HOLD, "nothing")

    with known_class(Gone) as name:
        assert user_class(name) is Gone
    with pytest.raises(ConfigInvalid, match="correct the name after the colon"):
        user_class(name)


def test_it_runs_inside_a_running_event_loop_of_any_thread(
    candles: Path, sma_run: Run[Any]
) -> None:
    """Public reports: parsera#10, haystack#8951, crawl4ai#563, ib_insync#237, streamlit#5073."""

    async def cell() -> list[tuple[int, DecisionIdentity]]:
        with backtest("sma_cross", candles, params=PARAMS, config=SIZED) as run:
            assert run.verify(sample=10).passes
            return identities(run.database)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(cell())).result() == identities(sma_run.database)


def test_sweeps_and_pictures_are_made_there_too(candles: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"config": SIZED, "end": "2025-05-26T08:32"}

    async def cell() -> None:
        space = {name: [value] for name, value in PARAMS.items()}
        tried = tracepaper.sweep(
            "sma_cross", candles, space, "return", jobs=1, progress=False, **given
        )
        with backtest("sma_cross", candles, params=PARAMS, **given) as run:
            assert tried.cells[0].value == run.summary["return"]
            run.plot("equity").save(tmp_path / "equity.svg")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(cell())).result()
    assert "<path" in (tmp_path / "equity.svg").read_text()


@pytest.mark.parametrize("words", [
    ("verify", "--sample", "5"), ("parity",), ("explain",), ("whatif", "--strategy", "persistence"),
])  # fmt: skip
def test_a_command_finds_its_run_where_a_configuration_keeps_it(
    sma_run: Run[Any], tmp_path: Path, words: tuple[str, ...]
) -> None:
    config = tmp_path / "own.toml"
    config.write_text(f'[storage]\nurl = "sqlite:///{sma_run.database}"\n')
    command, *more = words
    assert invoke([command, "last", "-c", str(config), *more]) == 0


def test_its_file_lives_with_the_result(candles: Path) -> None:
    """Public reports: freqtrade#12823, hummingbot#6479, Krypto-trading-bot#529, zenbot#1152."""
    handles = [*Path("/proc/self/fd").iterdir()]
    kept = backtest("persistence", candles, config=SIZED)
    folder = kept.database.parent
    assert kept.decisions.height == BARS
    del kept
    gc.collect()
    assert not folder.exists()
    with backtest("persistence", candles, config=SIZED, cash=5_000) as closed:
        assert closed.equity["equity"][0] == pytest.approx(5_000, rel=0.05)
        with pytest.raises(ConfigInvalid, match=r"name one that ends in \.html"):
            closed.save("run.db")
        folder = closed.database.parent
        assert closed.fills.height
    assert not folder.exists()
    assert "closed" in repr(closed)
    with pytest.raises(DataInvalid, match="is closed and its file removed"):
        _ = closed.orders
    assert [*Path("/proc/self/fd").iterdir()] == handles


def test_a_failed_start_leaves_nothing(
    candles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class Fails(Strategy):
        def decide(self, context: Any) -> Signal:
            raise ValueError("of my own")

    with pytest.raises(ConfigInvalid):
        backtest("sma_cross", candles, params={"fast": 30, "slow": 3})
    with pytest.raises(StrategyFailed, match=r"Fails failed in decide with ValueError: of my own"):
        backtest(Fails, candles)
    assert list(tmp_path.iterdir()) == []


def test_a_period_is_bounded(candles: Path) -> None:
    first = datetime(2025, 5, 26, 9, tzinfo=UTC)
    with backtest("sma_cross", candles, params=PARAMS, start=first, end="2025-05-26T10:00") as of:
        assert of.summary["bars"] == 60
        assert of.decisions["refused_by"].null_count() == 60  # warm from the first bar on
    with backtest("sma_cross", candles, params=PARAMS, start=date(2025, 5, 27)) as of:
        assert of.decisions["open_time_utc"][0] == datetime(2025, 5, 27, tzinfo=UTC)
