"""Networks over several symbols, from candles by one command to a run that is verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import bar, instrument
from command_line import Cli
from learning import DAY_BARS, START_MS, choose, learnable, write_csv
from recordings import record
from records import rows

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import NOTHING, Config
from tracepaper.daemon.config.loading import load as load_config
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import Limits, lookahead
from tracepaper.replay.checks.verify import verify_run
from tracepaper.storage.checkpoints import kept_folder, load, save
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.attention.methods import METHODS
from tracepaper.strategies.builtin import CrossAssetStrategy, SymbolAnswer
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import FeatureRows, FeatureStreams
from tracepaper.strategies.types.decisions import Forecast, HeadForecasts
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import iso

SYMBOLS = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
DAYS = 4
BARS = 640
"""Traded bars: some hundred more than the context."""


def series(symbol: str, count: int) -> Candles:
    return learnable(count, seed=SYMBOLS.index(symbol), symbol=symbol)


def data(count: int = BARS) -> list[Candles]:
    return [series(symbol, count) for symbol in SYMBOLS]


def refused(cli: Cli, *words: object) -> str:
    """Run a command that is rejected; return its message."""
    answer = cli(*words)
    assert answer.code != 0
    return " ".join((answer.out + answer.err).split())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("candles")
    return [write_csv(series(symbol, DAYS * DAY_BARS), folder) for symbol in SYMBOLS]


def data_words(files: Sequence[Path]) -> list[object]:
    return [word for path in files for word in ("--data", path)]


def training(kind: str, *more: object) -> list[object]:
    """Return the arguments of a short training."""
    dates = [iso(START_MS + round(day * 24) * 3_600_000) for day in (2, 2.75, 3.25)]
    return [
        "train",
        *choose(
            f"model.kind={kind}",
            "horizons=5,30",
            "calibration.horizon=5",
            "window=16",
            "layers=1",
            "dim=8",
            "heads=2",
            "training.steps=4",
            "training.length=256",
            "training.batch=2",
            "training.threads=1",
            "training.explained_bars=720",
            f"split.train_until={dates[0]}",
            f"split.validation_until={dates[1]}",
            f"split.calibration_until={dates[2]}",
        ),
        *more,
    ]


@pytest.fixture(scope="module")
def trained(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains a kind, once for all tests, and returns its folder."""

    @cache
    def of(kind: str, *more: object) -> Path:
        out = tmp_path_factory.mktemp(kind) / kind
        words = [*training(kind, *more), *data_words(files), "--out", out]
        assert invoke([str(word) for word in words]) == 0
        return out

    return of


def configured(
    folder: Path,
    kind: str,
    *,
    symbols: Sequence[str] = SYMBOLS,
    sections: Mapping[str, Any] = NOTHING,
    **more: Any,
) -> Config:
    """Return a configuration that trades the checkpoint in *folder*, with options *more*."""
    return load_config(
        None,
        {
            "market": {"symbols": list(symbols)},
            "strategy": {"name": kind, "options": more, "shadows": ("random_gate",)},
            "sizing": {"mode": "equity", "fraction": "1"},
            "model": {"checkpoint": str(folder), "threads": 1},
            **sections,
        },
    )


def held_at(path: Path, open_ms: int) -> set[str]:
    """Return why the network had no answer at a close; one gate held all symbols."""
    query = f"SELECT DISTINCT action, refused_by FROM v_decisions WHERE open_time_ms = {open_ms}"
    assert rows(path, query) == [("HOLD", "finite")]
    query = "SELECT text FROM v_notes WHERE name = 'no_answer' AND open_time_ms = "
    return {text for (text,) in rows(path, f"{query}{open_ms}")}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("crossasset", choose("factors=2")),
        ("portfolio", ()),
        ("portfolio", choose("attention=joint")),
    ],
)
def test_it_is_trained_traded_verified_and_judged_again(
    kind: str,
    more: tuple[object, ...],
    trained: Callable[..., Path],
    files: list[Path],
    tmp_path: Path,
    cli: Cli,
) -> None:
    folder = trained(kind, *more)
    card = load(folder).card
    assert card["model"]["kind"] == kind
    assert card["architecture"]["symbols"] == list(SYMBOLS)
    figures = card["figures"]["30"]
    assert {"network", "har", "ewma"} <= set(figures["qlike"])
    assert {"relative", "network", "persistence", "random"} <= set(figures["relative_rank_ic"])
    weights = card["figures"]["weights"]
    assert {"network", "equal", "inverse"} <= set(weights["net_bp_a_day"])
    assert weights["days"] == 1
    of_pairs = card["figures"].get("correlation", {})
    assert set(of_pairs) == ({"5", "30"} if "factors=2" in more else set())
    for pair in of_pairs.values():
        assert set(pair) == {"network", "ewma"}
    sentences = [line for line in card["honesty"]["sentences"] if "the network's own, are" in line]
    assert len(sentences) == bool(of_pairs)
    judged = cli.json("evaluate", folder, *data_words(files), *choose("evaluation.threads=1"))
    assert judged["figures"] == card["figures"]
    sentences = [line for line in card["honesty"]["sentences"] if "LightGBM" not in line]
    assert judged["sentences"] == [*sentences, *card["training"]["not_used"]]
    path = tmp_path / "run.db"
    run_id = record(path, configured(folder, kind), data())
    with Reader.open(path) as reader:
        assert verify_run(reader, path, run_id).differences == []
    counted = rows(path, "SELECT count(DISTINCT sequence) FROM v_notes WHERE name = 'weight'")
    assert counted[0][0] >= 3 * 10
    if kind == "portfolio":
        assert rows(path, "SELECT count(*) FROM v_fills")[0][0] > 3


def test_weights_of_a_close_are_traded_together_and_noted(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    record(path, configured(trained("portfolio"), "portfolio"), data())
    closes = rows(
        path,
        "SELECT open_time_ms, count(*), sum(abs(number)) FROM v_notes WHERE name = 'weight' "
        "GROUP BY open_time_ms",
    )
    assert all((time + 60_000) % 300_000 == 0 for time, _, _ in closes)
    assert {count for _, count, _ in closes} == {3}
    assert all(0.0 < gross <= 1.0 + 1e-5 for _, _, gross in closes)
    shares = rows(
        path,
        "SELECT sequence, count(*), sum(number) FROM v_notes WHERE name LIKE 'from_%' "
        "GROUP BY sequence",
    )
    assert {count for _, count, _ in shares} == {3}
    assert all(total == pytest.approx(1.0, abs=1e-6) for _, _, total in shares)
    long = tmp_path / "long.db"
    record(long, configured(trained("portfolio"), "portfolio", long_only=True, every=30), data())
    least = rows(long, "SELECT min(number), count(*) FROM v_notes WHERE name = 'weight'")
    assert least[0][0] >= 0.0
    assert 0 < least[0][1] < 3 * len(closes)


def test_a_rule_weighs_by_the_correlations_that_are_stored(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """Without a turnover price, minimum-variance weights are row sums of the inverse covariance."""
    folder, shrink = trained("crossasset", *choose("factors=2")), 0.3
    path = tmp_path / "run.db"
    options: dict[str, Any] = {"rule": "minimum", "shrink": shrink, "cost": 0}
    at_once = {"sizing": {"mode": "equity", "fraction": "1", "rebalance": 0}}
    config = configured(folder, "crossasset", sections=at_once, **options)
    run_id = record(path, config, data())
    checked = 0
    with Reader.open(path) as reader:
        assert verify_run(reader, path, run_id).differences == []
        noted = rows(path, "SELECT sequence, name, number FROM v_notes")
        notes: dict[int, dict[str, float]] = {}
        for sequence, name, number in noted:
            notes.setdefault(sequence, {})[name] = number
        weighed = sorted(sequence for sequence, note in notes.items() if "volatility" in note)
        for first in weighed[::3]:
            close = [reader.step(run_id, first + at).prediction for at in range(3)]
            matrix = np.empty((3, 3))
            for at, forecast in enumerate(close):
                assert isinstance(forecast, Forecast)
                matrix[at] = forecast.head("correlations", 0)
                pairs = {n: v for n, v in notes[first + at].items() if n.startswith("moves_with_")}
                assert pairs == {
                    f"moves_with_{SYMBOLS[j]}": matrix[at, j] for j in range(3) if j != at
                }
            assert matrix == pytest.approx(matrix.T)
            deviations = np.array([notes[first + at]["volatility"] for at in range(3)])
            risk = (matrix * (1 - shrink) + shrink * np.eye(3)) * np.outer(deviations, deviations)
            solved = np.linalg.solve(risk, np.ones(3))
            if (solved > 0).all():
                weights = [notes[first + at]["weight"] for at in range(3)]
                assert weights == pytest.approx(solved / solved.sum(), abs=2e-5)
                checked += 1
    assert checked > 5
    # Shrunk whole, no two symbols move together: then the run is the other's shadow account.
    shrunk = tmp_path / "alone.db"
    options["shrink"] = 1
    config = configured(folder, "crossasset", sections=at_once, **options)
    record(shrunk, config, data())
    fills = "SELECT filled_ms, instrument, quantity, price FROM v_shadow_fills WHERE shadow = '{}'"
    of_shadow = rows(path, fills.format("uncorrelated"))
    assert len(of_shadow) > 10
    assert of_shadow == rows(shrunk, fills.format("ungated")) != rows(path, fills.format("ungated"))


def answer_of(symbol: str, correlations: Sequence[float], volatility: float = 0.01) -> Forecast:
    """Return a network's answer for the symbols at one horizon."""
    share = SymbolAnswer(0.5, (0.001 * SYMBOLS.index(symbol),), (1.0, 0.0, 0.0)).encoded()
    heads = HeadForecasts(correlations=np.array(correlations, "<f4").tobytes())
    values = ((0.0,), (0.01,), (0.3,), (0.4,), (0.3,), (volatility,))
    return Forecast((5,), *values, auxiliary=share, heads=heads)


ROWS = ((1.0, 0.9, 0.0), (0.9, 1.0, 0.0), (0.0, 0.0, 1.0))


def weighed(
    options: Mapping[str, object], forecasts: Mapping[str, Forecast | None]
) -> Mapping[str, Signal]:
    """Ask the strategy at one close of equal bars."""
    strategy = CrossAssetStrategy(
        SYMBOLS, options, context=1, every=1, horizon_index=0, has_correlations=True
    )
    assert strategy.sees_account
    assert strategy.shadows == ("ungated", "uncorrelated")
    contexts = {}
    for symbol, forecast in forecasts.items():
        closed = bar(instrument_id=f"linear:{symbol}")
        strategy.observe(closed)
        contexts[symbol] = BarContext.of([closed], instrument(symbol), forecast=forecast)
    return strategy.decide(contexts)


def test_two_that_move_together_share_what_a_third_has_alone() -> None:
    pytest.importorskip("cvxpy", exc_type=ImportError)
    forecasts = {symbol: answer_of(symbol, row) for symbol, row in zip(SYMBOLS, ROWS, strict=True)}
    signals = weighed({"rule": "minimum", "shrink": 0, "cost": 0}, forecasts)
    solved = np.linalg.solve(np.array(ROWS), np.ones(3))
    expected = solved / solved.sum()
    assert [signal.strength for signal in signals.values()] == pytest.approx(expected, abs=1e-4)
    assert [leg.uncorrelated for leg in signals.values()] == pytest.approx([1 / 3] * 3, abs=1e-4)
    best = weighed({"rule": "mean_variance", "aversion": 0, "cost": 0}, forecasts)
    assert [signal.action.name for signal in best.values()] == ["FLAT", "FLAT", "LONG"]


@pytest.mark.parametrize("other", [None, answer_of("CCCUSDT", ROWS[2], float("nan"))])
def test_one_symbol_without_a_number_leaves_all_of_a_rule_unweighed(other: Forecast | None) -> None:
    forecasts = {symbol: answer_of(symbol, row) for symbol, row in zip(SYMBOLS, ROWS, strict=True)}
    signals = weighed({"rule": "minimum"}, forecasts | {"CCCUSDT": other})
    assert {(leg.action.name, leg.reason) for leg in signals.values()} == {("HOLD", "no forecast")}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rule": "equal"}, "rule`; choose one of mean_variance, minimum, network"),
        ({"evry": 5}, "unknown field `evry`"),
        ({"shrink": 0.5}, "shrink needs a rule by correlations; choose one by rule"),
        ({"rule": "minimum", "cost": -1}, "Expected `float` >= 0.0 - at `..cost`"),
    ],
)
def test_an_option_of_a_rule_that_is_none_is_named(
    options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        CrossAssetStrategy(
            SYMBOLS, options, context=1, every=1, horizon_index=0, has_correlations=True
        )


def test_a_rule_without_correlations_is_refused(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    folder = trained("portfolio")
    config = configured(folder, "portfolio", rule="minimum")
    with pytest.raises(ConfigInvalid, match="train one with factors = 1 or more"):
        record(tmp_path / "run.db", config, data(10))


@pytest.mark.parametrize(
    ("gate", "keys"),
    [
        ("confidence_entropy", {"confidence": "q0.5", "confidence_by": "entropy"}),
        ("regime", {"regimes": ("MOMENTUM", "MIXED")}),
    ],
)
def test_a_symbol_that_a_gate_refuses_keeps_its_weight_alone(
    gate: str, keys: dict[str, Any], trained: Callable[..., Path], tmp_path: Path
) -> None:
    config = configured(trained("portfolio"), "portfolio", sections={"gate": keys})
    path = tmp_path / "run.db"
    record(path, config, data())
    query = (
        "SELECT d.instrument, d.action, d.refused_by, d.target_quantity, n.number FROM v_decisions "
        "d LEFT JOIN v_notes n ON n.run_id = d.run_id AND n.sequence = d.sequence AND n.name = "
        "'weight' ORDER BY d.sequence"
    )
    holdings = dict.fromkeys((f"linear:{symbol}" for symbol in SYMBOLS), 0)
    refused_here = changed = 0
    for key, action, refused_by, target, weight in rows(path, query):
        if refused_by is not None:
            assert (action, target) == ("HOLD", holdings[key])
            refused_here += refused_by == gate and weight is not None
        changed += target != holdings[key]
        holdings[key] = target
    assert refused_here > 3
    assert changed > 5
    shadows = dict(rows(path, "SELECT shadow, count(*) FROM v_shadow_fills GROUP BY 1"))
    assert shadows["ungated"] > 5
    assert shadows["random_gate"] > 0


def test_a_close_that_a_symbol_misses_holds_all_with_one_sentence(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    first, second, third = data()
    places = np.delete(np.arange(BARS), 594)  # its bar would close at a whole number of five
    path = tmp_path / "missing.db"
    record(
        path,
        configured(trained("portfolio"), "portfolio"),
        [first, second[places], third],
    )
    times = first.open_time_ms
    assert held_at(path, int(times[594])) == {"BBBUSDT has no bar at this close"}
    (after,) = held_at(path, int(times[599]))
    assert after.startswith("BBBUSDT lacks one of the last ")


def test_no_later_bar_and_no_order_of_symbols_moves_it(trained: Callable[..., Path]) -> None:
    with FreshProcesses() as fresh:
        finding = lookahead(
            configured(trained("portfolio"), "portfolio"),
            MarketData(data()),
            fresh,
            Limits(probes=1),
        )
    assert finding.passes, finding.cause


def test_a_decision_says_which_asset_and_which_of_its_bars(
    trained: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "run.db"
    record(path, configured(trained("portfolio"), "portfolio"), data())
    sequences = rows(path, "SELECT sequence FROM v_notes WHERE name = 'weight' ORDER BY 1 DESC")
    sequence = sequences[1][0]
    document = cli.json("explain", f"last:{sequence}", "--db", path, "--full")
    influence = document["influence"]
    assert influence["largest_difference"] == 0.0
    assert [len(row) for row in influence["matrix"]] == [3, 3, 3]
    assert all(sum(row) == pytest.approx(1.0, abs=1e-6) for row in influence["matrix"])
    at = influence["symbols"].index(influence["symbol"])
    noted = {name: document["notes"][f"from_{name}"] for name in SYMBOLS}
    assert influence["matrix"][at] == pytest.approx([noted[name] for name in influence["symbols"]])
    weights = [row["weight"] for row in influence["heaviest"]]
    assert weights == sorted(weights, reverse=True)
    closed = document["decision"]["open_time_ms"]
    assert all(row["open_time_ms"] <= closed for row in influence["heaviest"])
    words = ["explain", f"last:{sequence}", "--db", str(path), "--full"]
    text = " ".join(cli.out(*words).split())
    assert "Influence: the share of each asset" in text
    assert f"It looked at {influence['symbol']}" in text
    early = rows(path, "SELECT min(sequence) FROM v_decisions")[0][0]
    cold = refused(cli, "explain", f"last:{early}", "--db", path, "--full")
    assert "has no forecast of a model" in cold
    usual = cli.json("explain", f"last:{sequence}", "--db", path, "--method", "rollout")[
        "influence"
    ]
    assert usual == influence
    residual = cli.json(
        "explain", f"last:{sequence}", "--db", path, "--method", "rollout",
        "--residual", "0.9",
    )["influence"]  # fmt: skip
    assert residual["options"] == {"residual_weight": 0.9}
    words = ["explain", f"last:{sequence}", "--db", str(path), "--fusion", "max"]
    assert "these are by fusion max." in " ".join(cli.out(*words).split())
    assert residual["matrix"][at][at] > influence["matrix"][at][at]
    assert residual["largest_difference"] > 0
    for method in METHODS[1:]:
        error = refused(cli, "explain", f"last:{sequence}", "--db", path, "--method", method)
        assert "A network over several symbols is explained by its rollout" in error
    error = refused(cli, "explain", f"last:{sequence}", "--db", path, "--with", f"last:{sequence}")
    assert "attends to several symbols, which only `explain --full` and `--method rollout`" in error


def test_a_run_is_verified_by_the_checkpoint_kept_beside_it_and_by_no_other(
    trained: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    checkpoint = load(trained("portfolio"))
    folder = tmp_path / "own"
    save(folder, checkpoint.tensors, checkpoint.card)
    path = tmp_path / "run.db"
    record(path, configured(folder, "portfolio"), data())
    shutil.rmtree(folder)
    sequence = rows(path, "SELECT max(sequence) FROM v_notes")[0][0]
    assert cli.json("verify", "last", "--db", path)["passes"]
    document = cli.json("explain", f"last:{sequence}", "--db", path, "--full")
    assert document["influence"]["largest_difference"] == 0.0
    stored = kept_folder(path, checkpoint.card["model"]["id"])
    changed = {name: tensor * 1.01 for name, tensor in checkpoint.tensors.items()}
    save(stored, changed, checkpoint.card)
    assert "restore it" in refused(cli, "verify", "last", "--db", path)
    shutil.rmtree(stored)
    words = refused(cli, "explain", f"last:{sequence}", "--db", path, "--full")
    assert "is not kept any more" in words


def test_a_feature_that_is_not_finite_holds_all(
    trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(streams: FeatureStreams, bars: Sequence[Bar], at: Sequence[int]) -> FeatureRows:
        features = step(streams, bars, at)
        bad = [(bar.instrument, bar.open_time_ms) == ("linear:BBBUSDT", spoiled) for bar in bars]
        features.values[bad, 2] = np.nan
        return features

    candles, step = data(), FeatureStreams.step
    times = candles[0].open_time_ms.tolist()
    spoiled = times[599]
    monkeypatch.setattr(FeatureStreams, "step", broken)
    path = tmp_path / "nan.db"
    record(path, configured(trained("portfolio"), "portfolio"), candles)
    query = (
        "SELECT g.passed, count(*) FROM v_gates g JOIN v_decisions d USING (run_id, sequence) "
        "WHERE g.gate = 'finite' AND d.open_time_ms = {} GROUP BY 1"
    )
    assert rows(path, query.format(times[599])) == [(0, 3)]
    assert rows(path, query.format(times[600])) == [(1, 3)]


def test_what_a_checkpoint_of_several_is_no_answer_to_is_refused_in_one_sentence(
    trained: Callable[..., Path], files: list[Path], tmp_path: Path, cli: Cli
) -> None:
    folder = trained("portfolio")
    config = tmp_path / "config.toml"
    config.write_text(f'[model]\ncheckpoint = "{folder}"\n[strategy]\nname = "attention"\n')
    words: tuple[object, ...] = ("replay", files[0], "-c", config, "--db", tmp_path / "run.db")
    assert "forecasts all symbols of a close together" in refused(cli, *words)
    config.write_text('[strategy]\nname = "portfolio"\n')
    assert "needs a checkpoint of that kind, and model.checkpoint" in refused(cli, *words)
    config.write_text('[strategy]\nname = "portfolio"\n[model]\ncheckpoint = "none"\n')
    assert "needs a model, and model.checkpoint is none" in refused(cli, *words)
    named = f'[model]\ncheckpoint = "{folder}"\n'
    config.write_text(f'{named}[strategy]\nname = "crossasset"\n')
    assert "is of the kind portfolio; name another" in refused(cli, *words)
    named += '[strategy]\nname = "portfolio"\n'
    config.write_text(f'{named}[market]\ninterval = "5"\n')
    assert "trained on interval 1, and market.interval is 5" in refused(cli, *words)
    config.write_text(f"{named}[model.explanation]\nmethod = 'norm'\n")
    assert "model.explanation" in refused(cli, *words)
    config.write_text(f"{named}[gate]\nhorizon = 7\n")
    assert "gate.horizon is 7, and the model forecasts" in refused(cli, *words)
    words = ("evaluate", folder, *data_words(files), "--inspect", "context=5")
    assert "examines what a model says of one instrument's bars" in refused(cli, *words)
    out = tmp_path / "out"
    words = (*training("crossasset"), *data_words(files[:1]), "--out", out)
    assert "at least two symbols" in refused(cli, *words)
    words = (*training("crossasset", *choose("every=7")), *data_words(files), "--out", out)
    assert "every is 7; weights are held for one of the horizons" in refused(cli, *words)
