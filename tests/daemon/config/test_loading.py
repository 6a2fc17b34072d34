"""The configuration: sources and their order, refusals that say what to do, and the hash."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.config.loading import (
    CARD,
    INTERVAL,
    SECTIONS,
    Config,
    example,
    load,
    load_with_origins,
    render,
    restore,
    settings_of,
    with_settings,
)
from tracepaper.daemon.config.values import plain
from tracepaper.storage import checkpoints
from tracepaper.strategies.errors import ConfigInvalid


def written(folder: Path, text: str) -> Path:
    path = folder / "paper.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        load(written(folder, text))
    return str(caught.value)


def test_later_sources_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, '[market]\ninterval = "5"\n[strategy]\nfast = 7\n[http]\nport = 1')
    monkeypatch.setenv("TRACEPAPER_STRATEGY__NAME", "sma_cross")
    monkeypatch.setenv("TRACEPAPER_STRATEGY__FAST", "8")
    monkeypatch.setenv("TRACEPAPER_HTTP__PORT", "2")
    config = load(path, {"http": {"port": 3}})
    assert (config.market.interval, config.strategy.fast, config.http.port) == ("5", 8, 3)


def test_the_working_directory_file_is_the_default(here: Path) -> None:
    assert load() == Config()
    (here / "tracepaper.toml").write_text('[account]\ncash = "7"')
    assert load().account.cash == Decimal(7)


def test_lists_and_tables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPAPER_MARKET__SYMBOLS", "BTCUSDT,ETHUSDT")
    monkeypatch.setenv("TRACEPAPER_GATE__REGIMES", '["MIXED"]')
    monkeypatch.setenv("TRACEPAPER_STRATEGY__NAME", "mine:Strategy")
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", '{"lookback": 3}')
    monkeypatch.setenv("TRACEPAPER_RISK__MAX_NOTIONAL", "")
    config = load(None)
    assert config.market.symbols == ("BTCUSDT", "ETHUSDT")
    assert config.gate.regimes == ("MIXED",)
    assert config.strategy.options == {"lookback": 3}
    assert config.settings()["risk"]["max_notional"] is None


OWN: Final = """
[strategy]
name = "mine:Calm"
options = {low = 3, high = 9, names = ["a", "b"]}
"""


def test_a_table_changes_the_keys_that_it_names_and_a_list_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, OWN)
    monkeypatch.setenv("TRACEPAPER_STRATEGY__OPTIONS", '{"high": 8}')
    settings = ['strategy.options={names = ["c"]}', "strategy.options.low=5"]
    changed = load(with_settings(path, settings)).strategy
    stored = restore(load(path).canonical_json(), settings_of(settings)).strategy
    assert changed.options == {"low": 5, "high": 8, "names": ["c"]}
    assert stored == changed
    other = ["strategy.name=mine:Other", "strategy.options.word=a,b"]
    monkeypatch.delenv("TRACEPAPER_STRATEGY__OPTIONS")
    assert load(with_settings(path, other)).strategy.options == {"word": "a,b"}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.explanation.methd=norm", "[model.explanation] has no key 'methd'"),
        ("strategy.options.=4", "sets no key; write section.key=value"),
    ],
)
def test_a_key_of_no_table_is_refused_in_a_replay_and_a_what_if(
    tmp_path: Path, setting: str, sentence: str
) -> None:
    path = written(tmp_path, OWN)
    stored = load(path).canonical_json()
    with pytest.raises(ConfigInvalid) as caught:
        load(with_settings(path, [setting]))
    assert sentence in str(caught.value)
    with pytest.raises(ConfigInvalid) as caught:
        restore(stored, settings_of([setting]))
    assert sentence in str(caught.value)


def test_a_table_within_a_section_is_read_whole_and_decides_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"method": "norm", "residual": "0.30"}
    path = tmp_path / "paper.toml"
    path.write_text('[model.explanation]\nmethod = "norm"\nresidual = "0.30"', encoding="utf-8")
    from_file = load(path)
    assert (from_file.model.explanation.method, from_file.model.explanation.start_layer) == (
        "norm",
        0,
    )
    assert restore(from_file.canonical_json()) == from_file
    assert from_file.sha256() != load(None).sha256()
    monkeypatch.setenv("TRACEPAPER_MODEL__EXPLANATION", json.dumps(given))
    assert load(None) == from_file
    path.write_text(render(from_file), encoding="utf-8")
    monkeypatch.delenv("TRACEPAPER_MODEL__EXPLANATION")
    assert load(path) == from_file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[market]\nintervall = "5"', "[market] has no key 'intervall'; the nearest is 'interval'"),
        ('[market]\ncash = "5"', "[market] has no key 'cash', but [account] has"),
        (
            "[strategy]\nstop_loss = 0.02",
            "has no key 'stop_loss': write [exits] stop_loss, such as",
        ),
        (
            "[exits]\nstoploss = -0.1",
            "has no key 'stoploss': write [exits] stop_loss, such as '2%'",
        ),
        ("[exits]\nstop_loss = -0.1", 'write "2%" of the entry price, "2 atr", "2 volatility" or'),
        ('[exits]\ntrailing = "q0"', 'write "2%" of the entry price'),
        ('[exits]\ntime_limit = "soon"', 'write a time such as "6h"'),
        ('[exits]\nminimal_roi = {"0" = 0.01, "30" = 0.02}', "returns that fall as time passes"),
        ('[exits]\nminimal_roi = {"30" = -1}', "write minutes and returns from 0 on"),
        ("[strategy]\ncommission = 0.001", "has no key 'commission': write [execution] taker_fee"),
        ("[strategy]\nqqqqqq = 1", "has no key 'qqqqqq' (it knows name, fast, slow"),
        ("[markt]\na = 1", "there is no section [markt]; the nearest is 'market'"),
        ('cash = "1"', "cash stands outside its section; put it below [account]"),
        ("market = 5", "market is a section; write [market]"),
        ("[account]\ncash = 12345678901234.567", 'write it as text, "12345678901234.566"'),
        ('[execution]\ntaker_fee = "0.2"', "less than or equal to 0.1."),
        ('[http]\nhost = "0.0.0.0"', "write a loopback address"),
        ('[market]\ninterval = "7"', "'1', '3', '5', '15'"),
        ('[market]\nsymbols = ["BTC USDT"]', "in the exchange's capitals instead of 'BTC USDT'"),
        ("[strategy]\nfast = 100", "fast = 100 must be below slow = 100"),
        ('[strategy]\nname = "magic"', "or a class of your own as module:Class"),
        ('[gate]\nedge = "q2"', "a quantile between 0 and 1"),
        ('[gate]\nregimes = ["CALM"]', "'MOMENTUM', 'MIXED' or 'MEAN_REVERSION'"),
        ('[storage]\nurl = "postgresql://db"', 'write "sqlite:///PATH": the record'),
        ('[exchange]\nrest_url = "api.bybit.com"', "that starts with https://"),
        ('[model]\ndevice = "gpu"', "write auto, cpu, cuda or cuda:N"),
        (
            '[model.explanation]\nmethod = "lime"',
            "[model.explanation] method = \"lime\" cannot be used; it should be 'rollout', 'norm',",
        ),
        ("[model]\nexplanation = 3", "explanation = 3 cannot be used"),
        (
            '[model]\nclass = "mine:Mine"\n[model.explanation]\nmethod = "norm"',
            "[model] explanation is a checkpoint's; take it out for a class",
        ),
        (
            '[model]\nclass = "mine:Mine"\ndropout_passes = 8',
            "[model] dropout_passes is a checkpoint's; take it out for a class",
        ),
        ("x = = 1", "is not TOML"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    sentence = refusal(tmp_path, text)
    assert words in sentence
    assert "paper.toml" in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("text", ["fraction=0.5", "quantity=1", "basis=equity"])
def test_a_size_of_another_mode_is_refused_and_not_ignored(text: str, tmp_path: Path) -> None:
    key, _, value = text.partition("=")
    with pytest.raises(
        ConfigInvalid, match=rf"\[sizing\] {key} has an effect only if mode is .* is notional"
    ):
        load(with_settings(None, [f"sizing.{text}"]))
    with pytest.raises(ConfigInvalid, match=f"the command line: .sizing. {key} has an effect"):
        load(None, {"sizing": {key: value.replace("1", "2")}})
    # Keys of a file go with the mode of that file, of which a later source may choose another.
    file = tmp_path / "fixed.toml"
    file.write_text('[sizing]\nmode = "fixed"\nquantity = "2"\n', encoding="utf-8")
    assert load(with_settings(file, ["sizing.mode=equity"])).sizing.mode == "equity"
    file.write_text('[sizing]\nquantity = "2"\n', encoding="utf-8")
    assert load(with_settings(file, ["sizing.mode=fixed"])).sizing.quantity == 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("fast=20", "trend"),
        ("long_only=false", "persistence"),
        ('options={"x": 1}', "sma_cross"),
        ("trend_volatility=0.2", "mine:Class"),
    ],
)
def test_a_key_of_another_strategy_is_refused_and_not_ignored(
    text: str, name: str, tmp_path: Path
) -> None:
    key = text.partition("=")[0]
    fault = rf"strategy\] {key} has an effect only if name is .*; name is {name}; change name"
    named = f"strategy.name={name}"
    with pytest.raises(ConfigInvalid, match=rf"^--set: .{fault}"):
        load(with_settings(None, [named, f"strategy.{text}"]))
    # What a file says beside its own strategy is laid aside with that.
    file = written(tmp_path, example())
    assert load(with_settings(file, [named])).strategy.name == name


def test_a_fault_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPAPER_HTTP__PORT", "many")
    with pytest.raises(ConfigInvalid, match=r"^TRACEPAPER_HTTP__PORT: \[http\] port"):
        load(None)
    monkeypatch.delenv("TRACEPAPER_HTTP__PORT")
    monkeypatch.setenv("TRACEPAPER_MARKT__SYMBOLS", "BTCUSDT")
    with pytest.raises(ConfigInvalid, match="TRACEPAPER_MARKT__SYMBOLS names no section"):
        load(None)


def test_a_default_file_that_is_none_is_refused(here: Path) -> None:
    """A container's missing file is mounted as a folder: the default symbol is not traded then."""
    assert load().market.symbols == ("BTCUSDT",)
    path = here / "tracepaper.toml"
    path.mkdir()
    with pytest.raises(ConfigInvalid, match=r"^tracepaper\.toml cannot be read"):
        load()
    path.rmdir()
    path.symlink_to(here / "absent")
    with pytest.raises(ConfigInvalid, match=r"no configuration at tracepaper\.toml"):
        load()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="config init"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load(tmp_path)
    binary = tmp_path / "paper.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        load(binary)


OTHER: dict[str, dict[str, object]] = {
    "market": {"interval": "5"},
    "exchange": {"ping_s": 3.0},
    "strategy": {"long_only": False},
    "model": {"threads": 2},
    "features": {"schema": "v2"},
    "gate": {"edge": "2"},
    "regime": {"hysteresis": "0.2"},
    "sizing": {"notional": "2000"},
    "exits": {"stop_loss": "2%"},
    "execution": {"latency_ms": 1},
    "risk": {"max_daily_trades": 5},
    "account": {"cash": "5"},
    "report": {"risk_free": "0.04"},
    "parity": {"daily_at": "03:00"},
    "storage": {"url": "sqlite:///other.db"},
    "http": {"port": 5},
    "log": {"level": "debug"},
    "notify": {"addresses": ["env:CHAT"]},
}


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_the_hash_covers_what_decides_a_run_and_nothing_else(section: str) -> None:
    changed = load(None, {section: OTHER[section]})
    assert changed.canonical_json() != Config().canonical_json()
    assert restore(changed.canonical_json()) == changed
    others = [
        "exchange",
        "parity",
        "report",
        "storage",
        "http",
        "log",
        "notify",
    ]
    assert (changed.sha256() != Config().sha256()) is (section not in others)


@given(st.decimals(min_value="0.00000001", max_value=46_116_860_184, places=8))
def test_an_amount_survives_the_canonical_text(amount: Decimal) -> None:
    config = load(None, {"account": {"cash": str(amount)}})
    assert config.account.cash == amount
    assert restore(config.canonical_json()).account.cash == amount


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-10, max_value=10))
def test_plain_text_reads_back_and_is_shortest(value: Decimal) -> None:
    text = plain(value)
    assert Decimal(text) == value
    assert "e" not in text.lower()
    assert text == plain(Decimal(text + ("0" if "." in text else ".0")))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("5", "5"),
        ("5m", "5"),
        ("15 min", "15"),
        ("1h", "60"),
        ("4H", "240"),
        ("1d", "D"),
        ("1w", "W"),
    ],
)
def test_an_interval_is_read_as_people_write_it(written: str, meant: str) -> None:
    assert load(None, {"market": {"interval": written}}).market.interval == meant


@pytest.mark.parametrize("written", ["btcusdt", "BTC/USDT", "btc/usdt:usdt", " BTCUSDT "])
def test_a_symbol_is_read_as_people_write_it(written: str) -> None:
    assert load(None, {"market": {"symbols": [written]}}).market.symbols == ("BTCUSDT",)
    assert load(None, {"market": {"symbols": f"{written},ETHUSDT"}}).market.symbols == (
        "BTCUSDT",
        "ETHUSDT",
    )


@pytest.mark.parametrize(
    ("interval", "horizon", "bars"),
    [("1", "30m", 30), ("15m", "4h", 16), ("1h", "1d", 24), ("5", "12", 12), ("D", "1w", 7)],
)
def test_a_horizon_is_bars_or_a_time(interval: str, horizon: str, bars: int) -> None:
    given = load({"market": {"interval": interval}, "gate": {"horizon": horizon}})
    in_bars = load({"market": {"interval": interval}, "gate": {"horizon": bars}})
    assert given.gate.horizon == bars
    assert given.sha256() == in_bars.sha256()


def test_a_time_that_is_a_horizon_follows_the_interval_of_a_later_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACEPAPER_GATE__HORIZON", "1h")
    assert load().gate.horizon == 60
    assert load(None, {"market": {"interval": "15"}}).gate.horizon == 4
    assert load(None, data={"market": {"interval": "30"}}).gate.horizon == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('interval = "15"\n[gate]\nhorizon = "20m"', "no whole number of bars of 15m"),
        ('asset = "stock"\n[gate]\nhorizon = "1d"', "no fixed number of bars"),
        ('interval = "5"\n[gate]\nhorizon = "soon"', "integer"),
        ('interval = "7"\n[gate]\nhorizon = "30m"', r"interval = "),
    ],
)
def test_a_horizon_that_is_no_number_of_bars_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    error = refusal(tmp_path, f"[market]\n{text}\n")
    assert sentence in error
    assert str(tmp_path) in error


@pytest.mark.parametrize("name", checkpoints.bundled())
def test_a_bundled_checkpoint_gates_at_the_horizon_of_its_card_where_none_is_set(name: str) -> None:
    card = checkpoints.read_card(checkpoints.locate(name))
    config, origins = load_with_origins(None, {"model": {"checkpoint": name}})
    assert config.gate.horizon == card["calibration"]["horizon"]
    assert origins.get(("gate", "horizon")) == (None if config.gate.horizon == 30 else CARD)
    thirty = load(None, {"model": {"checkpoint": name}, "gate": {"horizon": 30}})
    assert thirty.gate.horizon == 30
    assert restore(config.canonical_json()) == config


def test_the_default_checkpoint_is_one_of_the_interval() -> None:
    for interval, name in checkpoints.DEFAULT_BY_INTERVAL.items():
        card = checkpoints.read_card(checkpoints.locate(name))
        assert card["market"]["interval"] == interval
        config, origins = load_with_origins(None, {"market": {"interval": interval}})
        assert config.model.checkpoint == name
        assert origins["model", "checkpoint"] == INTERVAL
        assert config.gate.horizon == card["calibration"]["horizon"]
    assert load(None, {"market": {"interval": "15"}, "model": {"checkpoint": "none"}}).model == (
        load(None, {"model": {"checkpoint": "none"}}).model
    )
    assert load(None).model.checkpoint == checkpoints.DEFAULT
    one_minute = checkpoints.read_card(checkpoints.DEFAULT_CHECKPOINT)
    assert one_minute["market"]["interval"] == load(None).market.interval


def test_a_checkpoint_that_cannot_be_read_leaves_the_horizon(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text("[model]", encoding="utf-8")
    for folder in (tmp_path, tmp_path / "absent"):
        assert load(None, {"model": {"checkpoint": str(folder)}}).gate.horizon == 30


def test_exits_are_read_as_freqtrade_writes_them_and_decide_a_run() -> None:
    written = {"0": 0.04, "30": "2%", "1h": 0.01}
    config = load(
        None, {"exits": {"stop_loss": " 2.50 %", "take_profit": "q0.90", "minimal_roi": written}}
    )
    assert (config.exits.stop_loss, config.exits.take_profit) == ("2.5%", "q0.9")
    assert config.exits.minimal_roi == {"0": "4%", "30m": "2%", "1h": "1%"}
    assert restore(config.canonical_json()) == config
    assert load(None, {"exits": config.exits.model_dump()}) == config
    plain = load(None)
    assert config.sha256() != plain.sha256()
    assert load(None, {"exits": {"reenter": False}}).sha256() == plain.sha256()


def test_a_decimal_is_the_digits_that_were_written(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        "[account]\ncash = 1000.10\n[execution]\ntaker_fee = 0.00055\nmaker_fee = -1e-4\n"
    )
    config = load(file)
    assert (config.account.cash, config.execution.taker_fee) == (
        Decimal("1000.10"),
        Decimal("0.00055"),
    )
    assert config.execution.maker_fee == Decimal("-0.0001")
    texts = {
        "account": {"cash": "1000.1"},
        "execution": {"taker_fee": "0.00055", "maker_fee": "-0.0001"},
    }
    assert load(texts).sha256() == config.sha256()


@pytest.mark.parametrize(
    ("section", "key", "written"),
    [("account", "cash", "10,000"), ("execution", "taker_fee", "0.1%"), ("exits", "stop_loss", 2)],
)
def test_a_number_that_could_be_another_one_is_refused_by_its_key(
    section: str, key: str, written: object
) -> None:
    """Public reports: backtesting.py#248, vectorbt#426, optuna#469."""
    with pytest.raises(ConfigInvalid, match=rf"\[{section}\] {key} = .*{written}.* cannot be used"):
        load(None, {section: {key: written}})


@pytest.mark.parametrize("name", ["dip.py:Dip", "./dip.py:Dip", "dip:Dip"])
def test_a_class_may_be_named_by_its_file(name: str) -> None:
    """Public reports: freqtrade#5468 and #6441, backtesting.py#1242."""
    assert load({"strategy": {"name": name}}).strategy.name == "dip:Dip"


def test_a_model_may_be_named_by_its_file_in_a_folder() -> None:
    assert load({"model": {"class": "lib/tree.py:Tree"}}).model.custom_class == "lib.tree:Tree"
