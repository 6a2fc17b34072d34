"""The model card: its sections and sentences, and whether the model has beaten persistence.

The rules are docs/models.md, L7, L14 and L57.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from tracepaper.replay.document.values import Form, Table, plus_minus, table_of
from tracepaper.replay.learning.splits import Split, TrainingFile
from tracepaper.replay.report.honesty import (
    MAJORITY,
    PAIRED,
    compared_sentences,
    entropy_sentence,
    few_days,
)
from tracepaper.storage.checkpoints import Card, CardPair
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.units import MINUTE_MS, count_of, interval_text, iso, number, percent

if TYPE_CHECKING:
    from tracepaper.replay.learning.side_inputs import SideInputs

RECENT_MASS: Final = "recent_mass"
REGIME_SHARES: Final = (RECENT_MASS, "event_focus")
"""Measures on the card without a gate; their quantiles are the thresholds of regimes."""
PERCENTS: Final = tuple(range(1, 100))
ROUND_TRIP_COST: Final = 0.0011
"""Two taker fees of 5.5 basis points: the cost in ``edge``."""
_TEMPERATURE_RANGE: Final = (0.2, 5.0)


def temperature(logits: NDArray[np.float32], classes: NDArray[np.int64]) -> float:
    """Return the temperature, one for all horizons, that minimises the cross-entropy.

    *logits* is [row, class]; source: Guo et al., 2017.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and reading cards needs none

    rows = np.arange(len(classes))
    exact = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(exact / np.exp(log_temperature), axis=1)
        return -float(scaled[rows, classes].mean())

    low, high = np.log(_TEMPERATURE_RANGE)
    optimum = minimize_scalar(loss, bounds=(low, high), method="bounded")
    return rounded(float(np.exp(optimum.x)))


def slope(forecast: Array, value: Array) -> float:
    """Return the slope through the origin of realised on forecast means, at least zero.

    A negative slope shows a lack of signal, and is no reason to reverse forecasts.
    """
    squared = float((forecast * forecast).sum())
    return rounded(max(float((forecast * value).sum()) / squared, 0.0)) if squared > 0 else 0.0


def quantiles(values: Array) -> tuple[float, ...]:
    """Return the 1 % … 99 % quantiles of a measure; raise ``DataInvalid`` without values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise DataInvalid("A measure has no value on the calibration slice; make it longer.")
    return tuple(rounded(q) for q in np.percentile(finite, PERCENTS))


def rounded(value: float) -> float:
    """Return *value* to seven significant digits, for a card."""
    return float(f"{value:.7g}")


NOTICE: Final = "For paper trading only: this model has not been shown to earn money after costs."
REGIMES: Final = (
    "MOMENTUM and MEAN_REVERSION say that attention lies on recent or on distant bars; the names"
    " are the literature's and predict no momentum in returns."
)
NO_ATTENTION: Final = "It has no attention, so there are no figures of entropy, shift and regimes."
_LIBRARIES: Final = ("torch", "numpy", "scipy", "safetensors", "tracepaper")


def interval_name(interval_ms: int) -> str:
    """Return the exchange's name of an interval: minutes, or D and W."""
    minutes = interval_ms // MINUTE_MS
    return {1440: "D", 10_080: "W"}.get(minutes, str(minutes))


def model_section(kind: str, name: str, created_ms: int) -> dict[str, object]:
    """Return ``[model]``; ``checkpoints.save`` adds id and SHA-256."""
    return {"kind": kind, "name": name, "created": iso(created_ms // 1000 * 1000), "notice": NOTICE}


def features_section(schema: FeatureSchema, vectors: SideInputs | None = None) -> dict[str, object]:
    """Return ``[features]``, with a description of the side inputs *vectors*."""
    section: dict[str, object] = {
        "schema_id": schema.schema_id,
        "lookback": schema.lookback,
        "names": list(schema.names),
    }
    if vectors is not None and schema.covariates is not None:
        section |= vectors.section(schema.covariates.scale)
    return section


def data_section(sources: Sequence[TrainingFile]) -> dict[str, object]:
    """Return ``[data]``: each file with its SHA-256 and its time."""
    files = [
        {
            "name": source.name,
            "sha256": source.sha256,
            "symbol": source.symbol,
            "interval": interval_text(source.interval_ms),
            "bars": source.bars,
            "from": iso(source.from_ms),
            "until": iso(source.until_ms),
            **({"columns": list(source.columns)} if source.columns else {}),
            **({"source": source.source} if source.source else {}),
        }
        for source in sources
    ]
    return {"files": files}


def split_section(split: Split) -> dict[str, object]:
    """Return ``[split]``: the end of each part, and the start of the second holdout."""
    second = split.second_holdout_ms
    return parts_section(split) | ({} if second is None else {"second_holdout": iso(second)})


def parts_section(split: Split) -> dict[str, object]:
    """Return the keys of ``[split]`` that a fit depends on: its parts, and the embargo."""
    return {
        "train_until": iso(split.train_until_ms),
        "validation_until": iso(split.validation_until_ms),
        "calibration_until": iso(split.calibration_until_ms),
        "embargo_bars": split.embargo_bars,
        "purged_by": "the label's horizon",
    }


def versions_section() -> dict[str, object]:
    """Return ``[versions]`` of the installed libraries."""
    return {library: version(library) for library in _LIBRARIES}


def sentences(
    figures: Mapping[str, Any],
    gates: Mapping[str, Any],
    *,
    horizon: int,
    name: str = "network",
) -> list[str]:
    """Return the sentences that follow from the figures; *name* is the model's in *figures*."""
    entropy, lines = entropy_sentence(gates), [NOTICE]
    if entropy:
        lines.append(REGIMES)
    elif MAJORITY in figures[PAIRED][str(horizon)].get("sign", {}):
        # Without a move there are no figures of entropy either, and the next sentence says so.
        lines.append(NO_ATTENTION)
    lines += compared_sentences(figures, horizon, name)
    if entropy:
        lines.append(entropy)
    lines.append(_edge(gates["traded"]["edge"]))
    return [*lines, *few_days(figures[str(horizon)]["days"])]


def _edge(passed: Mapping[str, Any]) -> str:
    """Return a sentence about the trades with a calibrated edge above the costs."""
    cost = 1e4 * ROUND_TRIP_COST
    edge = f"calibrated edge above a round trip of {cost:.0f} basis points"
    if not passed["bars_per_1000"]:
        return f"No untouched bar had a {edge}, so none was traded."
    share = number(passed["bars_per_1000"])
    passing = f"On {share} of 1,000 untouched bars the model had a {edge}"
    if not passed["trades"]:
        return f"{passing}, and none was traded."
    return (
        f"{passing}: {count_of(passed['trades'], 'separate trade')} on "
        f"{count_of(passed['days'], 'day')}. For their profit, name a second holdout: tracepaper"
        " evaluate --holdout."
    )


def seeds_section(cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``[seeds]``: figures over several seeds as [mean, standard deviation].

    Differences between seeds are luck, so the figures of a single seed hide how large luck is.
    """
    section: dict[str, Any] = {
        "seeds": [card["training"]["seed"] for card in cards],
        "weights_sha256": [card["model"]["weights_sha256"] for card in cards],
        "edge_net_bp": [_net(card) for card in cards],
    }
    for horizon, name, values in _of_seeds(cards):
        section.setdefault(horizon, {})[name] = [round(fmean(values), 5), round(stdev(values), 5)]
    return section


def seeds_table(cards: Sequence[Mapping[str, Any]]) -> Table:
    """Return each figure's mean, spread and extremes over the cards of several seeds."""
    rows = []
    for horizon, name, values in _of_seeds(cards):
        spread = stdev(values) if len(values) > 1 else None
        rows.append((horizon, name, fmean(values), spread, min(values), max(values)))
    titles: dict[str, Form] = {
        "bars": "text", "figure": "text", "mean": "measure", "standard deviation": "measure",
        "lowest": "measure", "highest": "measure",
    }  # fmt: skip
    note = "One recipe, trained from each seed: what separates seeds is luck."
    drawn = ", ".join(str(card["training"]["seed"]) for card in cards)
    return table_of("seeds", f"Figures of {len(cards)} seeds: {drawn}", titles, rows, [note])


def card_tables(cards: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return the figures of *cards*, by the names of their checkpoints, and their other keys."""
    figures = [
        (name, int(horizon), *each)
        for name, card in cards.items()
        for horizon, *each in _figures_of(card)
    ]
    keys = [
        (name, section, *key)
        for name, card in cards.items()
        for section, content in card.items()
        for key in _keys_of({} if section == "figures" else content)
    ]
    texts: dict[str, Form] = dict.fromkeys(("checkpoint", "section", "key", "value"), "text")
    forms: dict[str, Form] = {
        "checkpoint": "text", "bars": "count", "figure": "text", "forecaster": "text",
        "value": "measure",
    }  # fmt: skip
    return [
        table_of("figures", "Figures on untouched time", forms, figures),
        table_of("card", "Card", texts, keys),
    ]


def _keys_of(content: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - of TOML
    """Yield the dotted name and the text of each value of *content*."""
    if not isinstance(content, Mapping):
        yield name, content if isinstance(content, str) else msgspec.json.encode(content).decode()
        return
    for key, value in content.items():
        yield from _keys_of(value, f"{name}.{key}".lstrip("."))


def _figures_of(card: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Yield (horizon, figure, forecaster, (value, error)) of each figure of *card*."""
    for horizon in (key for key in card.get("figures", {}) if key.isdecimal()):
        for name, figure in card["figures"][horizon].items():
            parts = figure if isinstance(figure, Mapping) else {"": figure}
            is_compared = _of_model(parts) is not None
            for key, pair in parts.items():
                if isinstance(pair, Sequence):
                    named = name if is_compared else f"{name}_{key}".rstrip("_")
                    yield horizon, named, key if is_compared else "model", (pair[0], pair[1])


def _of_seeds(cards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[float]]]:
    """Yield (horizon, name, values over *cards*) of each figure of the judged model."""
    by_card = [
        {
            (horizon, name): pair[0]
            for horizon, name, forecaster, pair in _figures_of(card)
            if forecaster in ("model", "network") and pair[0] is not None
        }
        for card in cards
    ]
    for key in by_card[0]:
        yield *key, [figures[key] for figures in by_card if key in figures]


def _of_model(figure: Mapping[str, Any]) -> Sequence[float] | None:
    """Return the judged model's figure, whose name is "network" or "model"."""
    return figure.get("network", figure.get("model"))


def seeds_sentence(cards: Sequence[Mapping[str, Any]], *, horizon: int) -> str:
    """Return a sentence with the sign accuracy of each seed."""
    pairs = [_of_model(card["figures"][str(horizon)]["sign_accuracy"]) for card in cards]
    accuracies = [pair[0] for pair in pairs if pair is not None]
    signs = ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
    return (
        f"From {len(cards)} seeds the sign accuracy at {horizon} bars was {signs} %: what separates"
        " seeds is luck."
    )


def _net(card: Mapping[str, Any]) -> list[float]:
    """Return the net result of the edge's trades, [mean, error]; empty without trades."""
    traded = card["figures"]["gates"].get("traded", {})
    return list(traded.get("edge", {}).get("net_bp", []))


def card_facts(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return phrases about kind, context, horizons, interval, features and date of a checkpoint."""
    card = msgspec.convert(table, Card)
    model, architecture, shares = card.model, card.architecture, card.ensemble.network_share
    kind, layers, horizons = f"{model.kind:.20}", architecture.layers, architecture.horizons[:16]
    facts = (
        f"{kind}: {layers} layers, window {architecture.window}" if layers else kind,
        _context(card),
        f"horizons {', '.join(map(str, horizons))}",
        f"interval {card.market.get('interval')!s:.20}",
        f"features {card.features.schema_id:.40}",
        f"made {model.created}",
    )
    if not shares:
        return facts
    mixed = ", ".join(f"{share:.2f} at {horizon}" for horizon, share in shares.items())
    return (*facts, f"the network's share of the log variance {mixed}")


def _context(card: Card) -> str:
    """Return a phrase with the rows and bars that a forecast depends on.

    The receptive field of stacked sliding windows is longer than one window.
    """
    layers, window, bars = (
        card.architecture.layers,
        card.architecture.window,
        card.features.lookback,
    )
    if layers is None or window is None:
        is_row = bars is not None and window is None
        return f"context {bars} bars" if is_row else "context unknown"
    slides = card.architecture.mask == "window" or card.architecture.attention == "factorised"
    rows = layers * (window - 1) + 1 if slides else window
    if bars is None:
        return f"receptive field {rows} bars"
    network = card.parts.get("network")
    lookback = None if network is None else network.features.lookback
    context = rows + bars - 1 if lookback is None else max(rows + lookback - 1, bars)
    return f"receptive field {rows} bars, context {context}"


COINS: Final = ("persistence", "reversed_persistence", "random")
"""Naive forecasts of the sign: the last move repeated, reversed, or a random sign."""
STEADY: Final = "ewma"
"""The naive forecast of the volatility: its past value."""


def experimental(table: Mapping[str, Any] | Card, *, of: str = "model") -> str:
    """Return a sentence that says why a checkpoint is experimental; empty if it is not.

    *of* is the name of its figures: ``network_member`` is an ensemble's network by itself. A
    checkpoint is not experimental if, at the gates' horizon, its QLIKE plus one standard error is
    below that of ``STEADY``, or its sign accuracy minus one is above those of ``COINS``.
    """
    card = msgspec.convert(table, Card)
    if any(each.is_better for each in card.figures.values()):
        return ""  # a model of order books, better than the frequencies of moves
    by_horizon = [name for name in card.figures if name.isdigit()]
    if not by_horizon:
        return _NO_FIGURES
    wanted, middle = str(card.calibration.get("horizon")), by_horizon[len(by_horizon) // 2]
    horizon = wanted if wanted in by_horizon else middle
    figures, reasons = card.figures[horizon], []
    model, steady = _pair(figures.qlike, of), _pair(figures.qlike, STEADY)
    if model is not None and steady is not None:
        if model[0] + model[1] < steady[0]:
            return ""
        reasons.append(
            f"QLIKE {model[0]:.4f} {plus_minus(model[1], '.4f')} beside {steady[0]:.4f} of {STEADY}"
        )
    signs = _pair(figures.sign_accuracy, of)
    coins = [pair[0] for name in COINS if (pair := _pair(figures.sign_accuracy, name))]
    if signs is not None and coins:
        if signs[0] - signs[1] > max(coins):
            return ""
        reasons.append(
            f"{percent(signs[0], 1)} {plus_minus(signs[1], '.1f', 100, ' %')} of signs beside "
            f"{percent(max(coins), 1)} by persistence, its reverse or a coin"
        )
    if not reasons:
        return _NO_FIGURES
    return f"over {horizon} bars it has not beaten persistence: {', '.join(reasons)}"


_NO_FIGURES: Final = "its card has no figures on untouched time beside persistence"


def _pair(figures: Mapping[str, CardPair], name: str) -> tuple[float, float] | None:
    """Return the figure of *name* with its error; None if the card lacks either."""
    # A network's card calls it "network", any other "model".
    pair = figures.get(name, figures.get("network") if name == "model" else None)
    if pair is None or pair[0] is None or pair[1] is None:
        return None
    return pair[0], pair[1]
