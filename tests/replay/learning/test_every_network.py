"""Every kind of network, from candles by one command to a run that is verified."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from command_line import Cli
from learning import DAY_BARS, FORMS, WINDOW, choose, learnable, recipe, write_csv

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load as load_config
from tracepaper.replay.archive import read_candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.isolation import FreshProcesses
from tracepaper.replay.checks.lookahead import MODEL, Limits, lookahead
from tracepaper.replay.learning.card import experimental
from tracepaper.replay.learning.estimators.networks import derived
from tracepaper.replay.learning.recipe import recipe_of, with_settings
from tracepaper.storage.checkpoints import load
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.trading import TradingConfig, TradingNetwork
from tracepaper.strategies.types.decisions import Forecast

pytestmark = pytest.mark.slow

DAYS = 6
BARS = 2 * WINDOW + schema("v2-1m").lookback + 20


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(learnable(DAYS * DAY_BARS), tmp_path_factory.mktemp("candles"))


def test_every_kind_has_a_form_here() -> None:
    assert {form["kind"] for form in FORMS.values()} == set(network_kinds())


@pytest.fixture(scope="module")
def trained(candles: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains a form by name, once for all tests, and returns its folder."""

    @cache
    def of(name: str) -> Path:
        form, folder = FORMS[name], tmp_path_factory.mktemp(name)
        words = (recipe(form, folder), "--data", candles, "--out", folder / name)
        assert invoke([str(word) for word in ("train", *words)]) == 0
        card = load(folder / name).card
        assert card["model"]["kind"] == form["kind"]
        for key, value in form.items():
            assert key == "kind" or card["architecture"][key] == value
        return folder / name

    return of


def prepared(out: Path, folder: Path) -> tuple[Path, Path]:
    """Return a configuration that trades the checkpoint *out*, and its candles."""
    config = folder / "config.toml"
    config.write_text(
        f'[market]\nsymbols = ["AAAUSDT"]\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{out}"\nthreads = 1\n'
        '[gate]\nhorizon = 30\ndirection = "0.3"\nedge = "0.001"\n'
        '[regime]\nmomentum = "0.9"\nmean_reversion = "0.1"\n',
        encoding="utf-8",
    )
    return config, write_csv(learnable(BARS), folder)


@pytest.mark.parametrize("name", FORMS)
def test_a_network_is_trained_replayed_and_verified(
    name: str, trained: Callable[[str], Path], tmp_path: Path, cli: Cli
) -> None:
    config, path = prepared(trained(name), tmp_path)
    database = tmp_path / "run.db"
    run = ("replay", path, "-c", config, "--db", database)
    assert cli.json(*run)["decisions"] == BARS
    assert cli.json("verify", "last", "--db", database)["exact"]
    with Reader.open(database) as reader:
        forecast = reader.step(reader.find("last"), BARS).prediction
    assert isinstance(forecast, Forecast)
    assert (forecast.explanation is None) == (FORMS[name]["kind"] == "lstm")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "frames_seen"),
    [("multiscale", [(1, 6), (3, 4), (12, 2)]), ("cross", [(1, 9), (4, 5)])],
)
def test_a_decision_says_which_time_frame_and_which_of_its_bars(
    name: str,
    frames_seen: list[tuple[int, int]],
    trained: Callable[[str], Path],
    tmp_path: Path,
    cli: Cli,
) -> None:
    config, path = prepared(trained(name), tmp_path)
    database = tmp_path / "run.db"
    cli.json("replay", path, "-c", config, "--db", database)
    words = ("explain", f"last:{BARS}", "--db", database, "--full")
    attribution = cli.json(*words)["full"]["attribution"]
    frames = attribution["frames"]
    assert [(frame["interval_ms"] // 60_000, frame["bars"]) for frame in frames] == frames_seen
    assert sum(frame["weight"] for frame in frames) == pytest.approx(1.0, abs=1e-6)
    assert sum(attribution["weights"]) == pytest.approx(1.0, abs=1e-6)
    assert attribution["modalities"] == []
    for frame in frames:
        opened = [bar["open_time_ms"] for bar in frame["heaviest"]]
        assert all(time % frame["interval_ms"] == 0 for time in opened)
        weights = [bar["weight"] for bar in frame["heaviest"]]
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) <= frame["weight"] + 1e-9
    assert "By timeframe, of closed bars" in cli.out(*words)


def test_a_decision_says_which_modality_and_which_bars_of_it(
    trained: Callable[[str], Path], tmp_path: Path, cli: Cli
) -> None:
    config, path = prepared(trained("trading"), tmp_path)
    database = tmp_path / "run.db"
    cli.json("replay", path, "-c", config, "--db", database)
    words = ("explain", f"last:{BARS}", "--db", database, "--full")
    full = cli.json(*words)["full"]
    for horizon in (5, 30):
        document = {
            key: [row for row in rows if row["bars ahead"] == horizon]
            for key, rows in full["auxiliary"].items()
        }
        assert len(document["tails"]) == 4
        assert sum(row["odds"] for row in document["regimes"]) == pytest.approx(1.0)
        assert document["paths"][-1]["after bars"] == horizon
    attribution = full["attribution"]
    assert attribution["frames"] == []
    shares = {part["modality"]: part["weight"] for part in attribution["modalities"]}
    assert set(shares) == {"price", "time"}
    assert sum(shares.values()) == pytest.approx(sum(attribution["weights"]), abs=1e-6)
    for part in attribution["modalities"]:
        weights = [bar["weight"] for bar in part["heaviest"]]
        assert weights == sorted(weights, reverse=True)
        assert sum(weights) <= part["weight"] + 1e-9
    output = cli.out(*words)
    assert "By modality of the bars" in output
    for title in ("The loss that a share", "The largest fall and rise", "The odds of each regime"):
        assert title in output
    assert "…" not in output.split("The loss that a share", 1)[1]
    assert "The forecast path, in bp" in output


def test_the_further_heads_of_a_network_are_judged_beside_simpler_forecasts(
    trained: Callable[[str], Path], candles: Path, cli: Cli
) -> None:
    folder = trained("trading")
    words = (
        "evaluate",
        folder,
        "--data",
        candles,
        *choose("evaluation.explained_bars=500", "evaluation.threads=1"),
    )
    (span,) = cli.json(*words)["holdouts"]
    card, tables = load(folder).card, span["tables"]
    assert [(row["horizon"], row["tail"], row["share"]) for row in tables["tails"]["rows"]] == [
        (horizon, f"of a {side} position", share)
        for horizon in (5, 30)
        for side in ("long", "short")
        for share in (0.01, 0.05)
    ]
    for name in ("drawdown", "runup"):
        assert {row["outcome"] for row in tables[name]["rows"]} == {"50 quantile", "90 quantile"}
    assert [row["outcome"] for row in tables["path"]["rows"]][-4:] == [
        "8 bars", "15 bars", "23 bars", "30 bars"
    ]  # fmt: skip
    assert [row["regime"] for row in tables["regimes"]["rows"]] == [1, 2, 3, 1, 2, 3]
    assert {(row["head"], row["forecaster"]) for row in tables["further"]["rows"]} == {
        *((head, "model") for head in ("tails", "drawdown", "runup", "path", "regimes")),
        *((head, "EWMA, scaled") for head in ("tails", "drawdown", "runup", "path")),
        ("tails", "its own Student t"),
        ("regimes", "its average odds"),
    }
    factors = card["calibration"]["further"]["factors"]["30"]
    assert set(factors) == {"tails", "drawdown", "runup", "path"}
    figures = span["figures"]["further"]
    assert figures == card["figures"]["further"]
    median = next(row for row in tables["drawdown"]["rows"] if row["outcome"] == "50 quantile")
    assert figures["5"]["drawdown"]["below_50"][0] == pytest.approx(
        median["realised"]["value"], abs=1e-5
    )
    assert any("its value at risk of 5 %" in line for line in span["sentences"])
    assert "likelihood of a mixture" in card["training"]["losses"]


def test_the_card_of_a_network_alone_says_how_it_stands_to_persistence(
    trained: Callable[[str], Path],
) -> None:
    card = load(trained("trading")).card
    figures = card["figures"]["30"]
    for network, steady, is_experimental in ((0.3, 0.5, False), (0.49, 0.5, True)):
        qlike = {**figures["qlike"], "network": [network, 0.02], "ewma": [steady, 0.02]}
        changed = {**figures, "qlike": qlike, "sign_accuracy": {"network": [0.5, 0.02]}}
        text = experimental({**card, "figures": {**card["figures"], "30": changed}})
        assert (
            "over 30 bars it has not beaten persistence: QLIKE 0.4900" in text
        ) is is_experimental
        assert bool(text) is is_experimental


def test_what_a_modality_is_worth_is_asked_as_any_change_of_a_recipe(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    card = load(trained("trading")).card
    assert card["architecture"]["modalities"] == ["price", "time"]
    document, names = recipe_of(card).document(), schema("v2-1m").names
    changed = derived(
        recipe_of(with_settings(document, ["modalities=volume"])), names, interval_minutes=1
    )
    assert isinstance(changed.architecture, TradingConfig)
    assert changed.architecture.modalities == ("volume",)
    assert TradingNetwork(changed.architecture).fusion.names == ("volume",)
    with pytest.raises(ConfigInvalid, match="No feature is of the modality vectors"):
        derived(
            recipe_of(with_settings(document, ["modalities=vectors"])), names, interval_minutes=1
        )


@pytest.mark.parametrize(
    "name", ["lstm", "informer", "generative", "multiscale", "cross", "trading"]
)
def test_no_future_moves_a_network_that_was_trained(
    name: str, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    config, path = prepared(trained(name), tmp_path)
    with FreshProcesses(MODEL) as fresh:
        candles = read_candles(str(path))
        finding = lookahead(load_config(config), MarketData([candles]), fresh, Limits(probes=1))
    assert finding.verdict == "nothing differs"
    assert finding.probes == 1
