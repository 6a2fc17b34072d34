"""Deletion and insertion: how fast a forecast leaves, or comes back, as bars are taken or given.

Bars are ranked, those that are said to matter most first. Deletion makes the first share of them
neutral and measures how far the forecast has moved; insertion starts from neutral rows, gives the
first share back, and measures how far it still is from the whole (Petsiuk, Das and Saenko, 2018).
The order that knows what matters moves it more by deletion and leaves less after insertion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.training.figures import estimate
from tracepaper.replay.training.subject import (
    TARGETS,
    DecidedBar,
    Ids,
    Subject,
    answer_of,
    ask,
    days_of,
    looked,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.attribution import integrated_gradients
from tracepaper.strategies.networks.architecture import Network

SHARES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the window's bars, at least one; an area is the mean over these."""
DRAWS: Final = 4
"""Random orders of each decision; their mean counts as one."""
RANDOM: Final = "random"
_SEED: Final = 20_170_817
_SIDES: Final = ("deletion", "insertion")


class BarOrder(NamedTuple):
    """Bars of a window by rank, the first one first, and the targets that it is judged by."""

    name: str
    bars: Ids
    targets: tuple[int, ...]


def ranked(scores: Array) -> Ids:
    """Return the bars from the highest score to the lowest; of equal ones the newest first."""
    count = len(scores)
    found: Ids = count - 1 - np.argsort(-scores[::-1], kind="stable")
    return found


def orders(
    subject: Subject, network: Network, decision: DecidedBar, generator: np.random.Generator
) -> list[BarOrder]:
    """Return every order of the bars of *decision*."""
    count = network.config.receptive_field
    both = tuple(range(len(TARGETS)))
    found = [BarOrder("recency", np.arange(count)[::-1], both)]
    found += [BarOrder(RANDOM, generator.permutation(count), both) for _ in range(DRAWS)]
    rows, positions = decision.rows(count), decision.positions(count)
    window = torch.from_numpy(rows)
    if network.has_attention:
        found.insert(0, BarOrder("rollout", ranked(looked(network, rows, positions)), both))
    neutral = torch.from_numpy(subject.neutral)
    for at, target in enumerate(TARGETS):
        answer = answer_of(network, positions, target, subject.column)
        added = integrated_gradients(
            lambda moved, answer=answer: answer((neutral + moved)[None])[0],  # type: ignore[misc]
            window - neutral,
        )
        scores = added.sum(dim=1).abs().cpu().numpy()
        found.append(BarOrder("integrated gradients", ranked(scores), (at,)))
    return found


def curves(subject: Subject, network: Network, decision: DecidedBar, bars: Ids) -> Array:
    """Return how far the forecast moved, [side, target, share], as *bars* are taken or given."""
    count = network.config.receptive_field
    window = decision.rows(count)
    changed = np.repeat(window[None], 2 * len(SHARES), axis=0)
    for at, share in enumerate(SHARES):
        first, rest = np.split(bars, [max(round(share * count), 1)])
        changed[at, first] = subject.neutral
        changed[len(SHARES) + at, rest] = subject.neutral
    every = np.concatenate([window[None], changed])
    said = ask(network, every, decision.positions(count)).targets(subject.column)
    moved: Array = np.abs(said[:, 1:] - said[:, :1]).reshape(len(TARGETS), 2, len(SHARES))
    return moved.swapaxes(0, 1)


def perturbations(subject: Subject, count: int) -> list[Table]:
    """Return areas and curves over *count* decisions, in orders that are paired by decision."""
    network = subject.need_network("--explanations")
    decisions = subject.decisions(count)
    found: dict[tuple[str, int], list[Array]] = {}  # of an order and a target
    for number, decision in enumerate(decisions):
        drawn: dict[tuple[str, int], list[Array]] = {}
        every = orders(subject, network, decision, np.random.default_rng((_SEED, number)))
        for order in every:
            moved = curves(subject, network, decision, order.bars)
            for target in order.targets:
                drawn.setdefault((order.name, target), []).append(moved[:, target])
        for key, several in drawn.items():
            found.setdefault(key, []).append(np.mean(several, axis=0))
    measured = {key: np.stack(each) for key, each in found.items()}  # [decision, side, share]
    return [_areas(subject, measured, decisions), _points(measured, decisions)]


def _areas(
    subject: Subject, measured: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]
) -> Table:
    """Return the areas of every order, beside their differences from random and recency."""
    days = days_of(decisions)
    count = len(np.unique(days))
    areas = {key: moved.mean(axis=2) for key, moved in measured.items()}  # [decision, side]
    rows: list[dict[str, Value]] = []
    for (name, target), area in sorted(areas.items(), key=lambda one: one[0][1]):
        row: dict[str, Value] = {"of": TARGETS[target], "order": name}
        for side, word in enumerate(_SIDES):
            row[word] = estimate(area[:, side], days)
            for other in (RANDOM, "recency"):
                gap = area[:, side] - areas[other, target][:, side]
                row[f"{word} - {other}"] = estimate(gap, days)
        rows.append(row)
    return table_of_rows(
        "explanations",
        f"Deletion and insertion of bars{subject.of_network}, {len(decisions)} decisions of "
        f"{count} days",
        "A neutral row is the mean of each feature over the training part. Areas are means over"
        f" 1/64 to 1/2 of the window; random is the mean of {DRAWS} draws. An order that finds"
        " what matters has more deletion than random, and less insertion.",
        rows,
    )


def _points(measured: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]) -> Table:
    """Return the curves, a row an order, side and target."""
    days = days_of(decisions)
    rows: list[dict[str, Value]] = []
    for (name, target), moved in sorted(measured.items(), key=lambda one: one[0][1]):
        for side, word in enumerate(_SIDES):
            cells = {
                f"1/{round(1 / share)}": estimate(moved[:, side, at], days)
                for at, share in enumerate(SHARES)
            }
            rows.append({"of": TARGETS[target], "order": name, "curve": word, **cells})
    return table_of_rows(
        "explanation_curves",
        "How far the forecast moved, by the share of bars taken (deletion) or given (insertion)",
        "Absolute changes of the log variance, and of the mean in units of σ √h.",
        rows,
    )
