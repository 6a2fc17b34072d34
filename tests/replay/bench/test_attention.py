"""The attention bench: its routes agree, its medians are medians, its figures can be shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tracepaper.replay.bench.attention import (
    DENSE_MAX,
    ROUNDS_MAX,
    ROUNDS_MIN,
    interleaved,
    mask_named,
    measure,
    peak_bytes,
)
from tracepaper.replay.bench.attention_show import plot, render
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.networks import workloads
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.networks.stream import CHUNK_BARS

SETTING = workloads.Setting(layers=2, heads=2, head_dim=8)


class ScriptedClock:
    """A clock that hands out given durations: two readings a measurement."""

    def __init__(self, durations: list[float]) -> None:
        self.durations = durations
        self.now = 0.0
        self.readings = 0

    def __call__(self) -> float:
        if self.readings % 2:
            self.now += self.durations[(self.readings // 2) % len(self.durations)]
        self.readings += 1
        return self.now


def test_routes_take_turns_and_the_median_is_taken() -> None:
    order: list[str] = []
    clock = ScriptedClock([9.0, 1.0, 2.0, 1.0, 4.0, 1.0])
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, clock=clock
    )
    assert seconds == {"a": 4.0, "b": 1.0}
    assert order == ["a", "b"] * (1 + ROUNDS_MIN)  # a warm-up, then whole rounds


def test_short_routes_are_measured_often_but_not_forever() -> None:
    order: list[str] = []
    interleaved({"a": lambda: order.append("a")}, clock=ScriptedClock([1e-3]))
    assert len(order) == 1 + ROUNDS_MAX


def test_every_route_gives_the_same_row() -> None:
    inputs = workloads.draw(SETTING, 90)
    for mask in (Mask.full(), Mask.causal(), Mask.window(30)):
        sums = workloads.forward(inputs, mask)
        row = workloads.explain(inputs, sums, mask)
        assert float((row - workloads.dense(inputs, mask).weights).abs().max()) < 1e-7
        assert (
            float((row[0, 0] - workloads.explain_many(inputs, sums, mask)[0, -1]).abs().max())
            < 1e-7
        )


def test_the_plain_stream_forecasts_as_the_explained_one_does() -> None:
    config = FlashConfig(dim=16, layers=2, heads=2, window=70)
    live = workloads.Live(config)
    for bars in (1, 1, CHUNK_BARS, 1):
        explained = live.advance(bars, explained=True)
        plain = live.advance(bars, explained=False)
        live.move(bars)
        torch.testing.assert_close(explained.outputs.mean, plain.outputs.mean)
        assert explained.rollout.shape == plain.rollout.shape


def test_a_dense_route_that_cannot_fit_is_refused_with_the_size_that_would() -> None:
    with pytest.raises(AttentionInvalid, match="use at most"):
        workloads.require_dense(workloads.Setting(), 4_096, available_bytes=1 << 28)


def test_figures_are_plain_numbers_that_can_be_shown(tmp_path: Path) -> None:
    heard: list[str] = []
    figures = measure([64, 128], memory=False, compiled=False, tell=heard.append)
    assert json.loads(json.dumps(figures)) == figures
    assert [row["bars"] for row in figures["attention"]] == [64] * 3 + [128] * 3
    assert all(row["ours_s"] > 0 and row["dense_s"] > 0 for row in figures["attention"])
    assert [row["features"] for row in figures["linear"]] == ["elu", "random"] * 2
    assert all(0 < row["distance"] < 1 < 1e6 * row["forward_s"] for row in figures["linear"])
    assert figures["live"]["step_ratio"] > 0
    assert heard[0] == "64 bars, causal"
    page = io.StringIO()
    Console(width=200, file=page).print(render(figures))
    assert "explain ms" in page.getvalue()
    assert "Linear attention, causal" in page.getvalue()
    plot(figures, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_peaks_come_from_a_process_of_their_own() -> None:
    bars = DENSE_MAX // 2
    flash, dense = peak_bytes("flash", "causal", bars), peak_bytes("dense", "causal", bars)
    assert flash < 1 << 25
    assert dense > 4 * 4 * bars**2 * 4  # all the matrices of four layers of four heads


@pytest.mark.parametrize("name", ["windows", "window:", "window:x", "diagonal"])
def test_an_unknown_mask_is_refused(name: str) -> None:
    with pytest.raises(ConfigInvalid, match="choose full, causal or window:BARS"):
        mask_named(name)


def test_masks_are_named_as_they_are_written() -> None:
    assert mask_named("window:9") == Mask.window(9)
    assert mask_named("causal") == Mask.causal()
    assert mask_named("full") == Mask.full()
