"""Heads made to behave in a known way are read as such."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import case
from builders import present
from scipy import stats
from torch import Tensor

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.heads import EVENT_SHARE, LEGEND, head_figures, read_head, ties_of
from tracepaper.strategies.units import percent


def test_one_row_tells_no_kind() -> None:
    with pytest.raises(AttentionInvalid, match="at least two rows"):
        read_head(torch.ones(1, 5), [4], 5)


def test_head_rows_of_a_wrong_logsumexp_are_refused() -> None:
    sample = case(Mask(), layers=1)
    with pytest.raises(AttentionInvalid, match="did not keep its attention mass"):
        Layer(sample.queries[0], sample.keys[0], None, sample.sums[0] + 0.1, sample.mask).rows([5])


PLANTED = ("local", "periodic", "event-driven", "diffuse", "restless")


def planted(name: str, visible: int, noise: float, seed: int) -> tuple[Tensor, list[int]]:
    """Return 40 rows of a head that behaves so but for its share of *noise*, and their bars.

    A restless head looks at other bars each time.
    """
    count, drawn = 40, torch.Generator().manual_seed(seed)
    rows = list(range(visible, visible + count))
    age = torch.tensor(rows)[:, None] - torch.arange(rows[-1] + 1)
    match name:
        case "local":
            score = (-age.clamp_min(0) / (visible / 64)).exp()
        case "periodic":
            score = (age % (visible // 9) == 0).double()
        case "event-driven":
            bars = torch.randint(count, visible * 3 // 4, (3,), generator=drawn)
            score = torch.zeros(age.shape).index_fill(1, bars, 1.0)
        case "restless":
            score = torch.zeros(age.shape)
            for at, row in enumerate(rows):
                back = torch.randint(1, visible - 1, (4,), generator=drawn)
                score[at, row - back] = 1.0
        case _:
            score = torch.ones(age.shape)
    chance = torch.rand(age.shape, generator=drawn, dtype=torch.float64)
    hidden = (age < 0) | (age >= visible)
    parts = [each.double().masked_fill(hidden, 0.0) for each in (score, chance)]
    pattern, random = (each / each.sum(dim=1, keepdim=True) for each in parts)
    return (1.0 - noise) * pattern + noise * random, rows


@pytest.mark.parametrize("visible", [64, 200, 1_088])
@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_head_is_told_by_the_thresholds_of_the_legend(
    name: str, noise: float, visible: int
) -> None:
    weights, rows = planted(name, visible, noise, seed=3)
    # A restless head is none of the kinds: it rests on bars, but never on the same.
    reading = read_head(weights, rows, visible)
    assert reading.kind == name.replace("restless", "diffuse")
    if name == "periodic":
        assert reading.period_bars == visible // 9
    [figures] = head_figures(weights[None], rows, visible)
    assert ("focused" in figures.marks) == (name in ("periodic", "event-driven", "restless"))
    if name != "local":  # one that looks at the last bar alone moves on with each bar
        assert ("stable" in figures.marks) == (name in ("event-driven", "diffuse"))
    assert "apart" not in figures.marks
    assert f"{percent(EVENT_SHARE, 0)}" in LEGEND


@pytest.mark.parametrize("visible", [64, 200, 1_088])
def test_heads_of_other_kinds_are_apart_and_those_of_one_kind_are_not(visible: int) -> None:
    every, rows = zip(*(planted(name, visible, 0.2, seed=3) for name in PLANTED), strict=True)
    marks = [each.marks for each in head_figures(torch.stack(every), rows[0], visible)]
    assert all("apart" in each for each in marks)
    for name in ("local", "periodic", "diffuse"):
        alike = [planted(name, visible, 0.4, seed=seed)[0] for seed in range(4)]
        marks = [each.marks for each in head_figures(torch.stack(alike), rows[0], visible)]
        assert all("apart" not in each for each in marks)


def test_how_far_a_head_looks_is_in_bars_and_a_short_window_has_no_focus() -> None:
    rows = list(range(20, 24))
    weights = torch.zeros(1, 4, 24, dtype=torch.float64)
    for at, row in enumerate(rows):
        weights[0, at, [row - 2, row - 6]] = 0.5
    [figures] = head_figures(weights, rows, 20)
    assert (figures.mean_age, figures.half_life) == (4.0, 2.0)
    assert figures.effective_bars == pytest.approx(2.0)
    assert figures.focus is None
    assert figures.separation == 0.0


def persistent(bars: int, seed: int) -> Tensor:
    """Return a normal series that keeps 0.9 of itself from one bar to the next."""
    drawn = torch.randn(bars, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for at in range(1, bars):
        drawn[at] = 0.9 * drawn[at - 1] + (1 - 0.9**2) ** 0.5 * drawn[at]
    return drawn


def tied(name: str, visible: int, seed: int, noise: float = 0.4) -> tuple[str, ...]:
    """Return the marks of a head that looks at what *name* says, and fades with age."""
    count, rows = 40, list(range(visible, visible + 40))
    bars = visible + count
    volume, volatility, other = (persistent(bars, 10 * seed + at).exp() for at in range(3))
    generator = torch.Generator().manual_seed(1_000 + seed)
    moved = torch.randn(bars, generator=generator, dtype=torch.float64).abs()
    moved = moved.square() * moved  # a few are far larger than the others
    edge = moved.sort(descending=True).values[round(bars / 64)]
    looks = {
        "volume": volume,
        "volatility": volatility,
        "extremes": 1.0 + 30.0 * (moved > edge),
        "others": other,  # bars of its own, as persistent
        "none": torch.ones(bars, dtype=torch.float64),
    }[name]
    age = torch.tensor(rows)[:, None] - torch.arange(bars)
    hidden = (age < 0) | (age >= visible)
    chance = torch.rand(age.shape, generator=generator, dtype=torch.float64)
    fading = (-age.clamp_min(0) / visible).exp()
    parts = [each.masked_fill(hidden, 0.0) for each in (looks * fading, chance)]
    pattern, random = (each / each.sum(dim=1, keepdim=True) for each in parts)
    weights = (1.0 - noise) * pattern + noise * random
    ties = present(ties_of(weights, rows, visible, volume, volatility, moved))
    return ties.marks


@pytest.mark.parametrize("visible", [200, 1_088])
@pytest.mark.parametrize("name", ["volume", "volatility", "extremes"])
def test_what_a_head_is_tied_to_is_named(name: str, visible: int) -> None:
    for seed in range(5):
        assert name in tied(name, visible, seed)


@pytest.mark.parametrize("name", ["others", "none"])
def test_a_head_that_follows_nothing_of_these_is_tied_to_nothing(name: str) -> None:
    ties = [tied(name, 1_088, seed) for seed in range(20)]
    assert ties.count(()) >= 19


def test_ties_are_what_numpy_says_and_need_enough_bars() -> None:
    generator = torch.Generator().manual_seed(2)
    rows, visible = [95, 96, 97], 90
    weights = torch.rand(3, 98, generator=generator, dtype=torch.float64)
    age = torch.tensor(rows)[:, None] - torch.arange(98)
    weights = weights.masked_fill((age < 0) | (age >= visible), 0.0)
    volume, volatility, moved = torch.rand(3, 98, generator=generator, dtype=torch.float64)
    ties = present(ties_of(weights, rows, visible, volume, volatility, moved))
    by_age = np.array([[float(weights[r, row - a]) for a in range(visible)]
                       for r, row in enumerate(rows)])  # fmt: skip
    looks: dict[int, list[float]] = {}
    for r, row in enumerate(rows):
        for a in range(visible):
            looks.setdefault(row - a, []).append(by_age[r, a] / by_age[:, a].mean())
    bars = sorted(bar for bar, each in looks.items() if len(each) >= 2)
    mean = np.array([np.mean(looks[bar]) for bar in bars])
    wanted = stats.spearmanr(mean, volume.numpy()[bars]).statistic
    assert ties.volume.value == pytest.approx(wanted, abs=1e-12)
    shifted = [
        stats.spearmanr(mean, np.roll(volume.numpy()[bars], k)).statistic
        for k in range(len(bars) // 20, len(bars) - len(bars) // 20)
    ]
    assert ties.volume.p == pytest.approx(
        (1 + sum(statistic >= wanted - 1e-12 for statistic in shifted)) / (1 + len(shifted)),
        abs=0.03,
    )
    top = np.argsort(-moved.numpy()[bars])[: round(len(bars) / 64)]
    assert ties.extremes.value == pytest.approx(mean[top].mean() / mean.mean(), abs=1e-9)
    assert ties_of(weights[:, -60:], [57, 58, 59], 50, *torch.rand(3, 60)) is None
