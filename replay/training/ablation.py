"""Context ablation: what is lost when a network sees only the last part of its window.

A network that takes any number of rows is given the last of them and no other: exactly what it
says after its stream was restarted so many bars before. One that takes whole windows alone has
neutral rows before them. Every share is judged on the same decisions, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.training.figures import estimate, qlike_of
from tracepaper.replay.training.subject import (
    DecidedBar,
    Said,
    Subject,
    ask,
    days_of,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network

PARTS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Divisors of the window; one that leaves less than a bar leaves one."""


def bars_seen(network: Network) -> dict[int, int]:
    """Return how many bars are seen at each of ``PARTS``; a number of bars stands there once."""
    found: dict[int, int] = {}
    for part in PARTS:
        bars = max(network.config.receptive_field // part, 1)
        if bars not in found.values():
            found[part] = bars
    return found


def seeing(subject: Subject, network: Network, decision: DecidedBar, bars: int) -> Said:
    """Return what is said of *decision* when *network* sees the last *bars* rows alone.

    An ensemble's row model sees its own row whatever they are.
    """
    said = _network_seeing(subject, network, decision, bars)
    if subject.mix is None:
        return said
    assert subject.trained is not None
    _, rows = subject.trained.model.answer(subject.own_rows(decision.rows(1)))
    mixed = subject.mix.log_variance(said.log_variance, rows)
    return said._replace(log_variance=mixed.astype(np.float32))


def _network_seeing(subject: Subject, network: Network, decision: DecidedBar, bars: int) -> Said:
    known = decision.rows(bars)
    if network.takes_any_length:
        return ask(network, known[None], decision.positions(bars))
    count = network.config.receptive_field
    window = np.repeat(subject.neutral[None], count, axis=0)
    window[count - bars :] = known
    return ask(network, window[None], decision.positions(count))


def context_ablation(subject: Subject, count: int) -> list[Table]:
    """Return QLIKE and sign over *count* decisions by the share of the window that is seen."""
    network = subject.need_network("--ablation")
    decisions, seen = subject.decisions(count), bars_seen(network)
    said: dict[int, tuple[Array, Array]] = {}  # of a part: mean and variance [decision, horizon]
    for part, bars in seen.items():
        each = [seeing(subject, network, decision, bars) for decision in decisions]
        means = np.concatenate([one.mean for one in each]).astype(np.float64)
        variances = np.exp(np.concatenate([one.log_variance for one in each]).astype(np.float64))
        said[part] = means, variances
    rows = [
        row
        for column in range(len(subject.material.horizons))
        for row in _of_horizon(subject, decisions, seen, said, column)
    ]
    how = (
        "its stream restarted so many bars before the decision"
        if network.takes_any_length
        else "all earlier rows neutral, the mean of each feature over the training part"
    )
    beside = ""
    if subject.mix is not None:
        beside = " The variance is the ensemble's, whose row model sees its row as it is."
    days = len(np.unique(days_of(decisions)))
    return [
        table_of_rows(
            "ablation",
            f"Context ablation, {len(decisions)} decisions of {days} days",
            f"The network sees the last part of its window alone: {how}.{beside} Differences are"
            " from the whole window on the same decisions; a QLIKE above it and a sign below it are"
            " losses.",
            rows,
        )
    ]


def _of_horizon(
    subject: Subject,
    decisions: Sequence[DecidedBar],
    seen: dict[int, int],
    said: dict[int, tuple[Array, Array]],
    column: int,
) -> list[dict[str, Value]]:
    """Return a row for each part of the window, of the decisions labelled at one horizon."""
    weights = np.array([one.samples.weights[one.row, column] for one in decisions])
    known = np.flatnonzero(weights > 0)
    if not len(known):
        return []
    chosen = [decisions[at] for at in known.tolist()]
    days = days_of(chosen)
    labels = {
        name: np.array([one.samples.labels[name][one.row, column] for one in chosen], np.float64)
        for name in ("variance", "returns")
    }
    losses = {p: qlike_of(v[known, column], labels["variance"]) for p, (_, v) in said.items()}
    moved = labels["returns"] != 0
    hits = {
        p: (np.sign(m[known, column]) == np.sign(labels["returns"]))[moved].astype(np.float64)
        for p, (m, _) in said.items()
    }
    time = subject.material.times[column]
    return [
        {
            "horizon": time,
            "window": "whole" if part == 1 else f"1/{part}",
            "bars": bars,
            "QLIKE": estimate(losses[part], days),
            "QLIKE - whole": estimate(losses[part] - losses[1], days),
            "sign": estimate(hits[part], days[moved]),
            "sign - whole": estimate(hits[part] - hits[1], days[moved]),
        }
        for part, bars in seen.items()
    ]
