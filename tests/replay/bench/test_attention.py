"""The attention bench: its routes agree, its medians are medians, its errors name a cure."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import dense_attention as reference
import pytest
import torch
from attention_cases import Case
from torch.nn import functional

from tracepaper.daemon.cli import invoke
from tracepaper.replay.bench import attention as bench
from tracepaper.replay.bench import costs
from tracepaper.replay.bench.attention import (
    MASKS,
    Setting,
    draw,
    explanation_row,
    foreign_row,
    live_row,
    model_rows,
)
from tracepaper.replay.bench.machine import ROUNDS_MAX, ROUNDS_MIN, interleaved
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.networks.flash import FlashConfig

SETTING = Setting(layers=2, heads=2, head_dim=8)


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
    clock = ScriptedClock([0.9, 0.5, 0.8, 0.5, 0.7, 0.5, 0.6, 0.5])
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, clock=clock
    )
    assert seconds == pytest.approx({"a": 0.7, "b": 0.5})
    assert order == ["a", "b"] * (1 + ROUNDS_MIN)  # a warm-up, then whole rounds
    order.clear()
    interleaved({"a": lambda: order.append("a")}, clock=ScriptedClock([1e-3]))
    assert len(order) == 1 + ROUNDS_MAX
    order.clear()
    interleaved({"a": lambda: order.append("a")}, clock=ScriptedClock([1.5]))
    assert len(order) == 2  # the warm-up of a route of seconds counts, and three seconds are enough


@pytest.mark.parametrize("mask", [Mask.full(), Mask(), Mask.window(30)])
def test_every_route_gives_the_same_row(mask: Mask) -> None:
    inputs = draw(SETTING, 90)
    layers = bench.forward(inputs, mask)
    wide = [(query.double(), key.double()) for query, key, _ in inputs.layers]
    matrices = [reference.attention_matrix(query, key, mask) for query, key in wide]
    sums = [layer.logsumexp for layer in layers]
    case = Case(inputs.queries, inputs.keys, sums, matrices, mask)
    expected = reference.rollout(matrices, mask)[:, -1:]
    for row in (bench.explain(layers), bench.explain(layers, "tiles"), bench.dense(inputs, mask)):
        case.hold(row, expected)
    torch.testing.assert_close(bench.explain_every(layers)[0, -1].sum(), torch.tensor(1.0))


def test_each_table_has_its_rows() -> None:
    def function(inputs: bench.Inputs, mask: Mask) -> object:
        return inputs.queries[0] @ inputs.keys[0].mT

    row = explanation_row(SETTING, 90, MASKS["causal"], {"mine": function})
    assert {"one decision ÷ flash", "every bar ÷ flash", "mine ÷ flash"} <= row.keys()
    assert {"one query ÷ sdpa", "whole rows, capped ÷ sdpa"} <= foreign_row(SETTING, 64).keys()
    assert live_row(FlashConfig(dim=16, layers=2, heads=2, window=70))["live step ms"] > 0


def test_a_model_of_transformers_is_explained_beside_other_libraries() -> None:
    ratios = [row["÷ forward"] for row in model_rows(SETTING, lambda _: None, tokens=16)]
    assert len(ratios) == 5
    assert min(ratios) > 0


def test_costs_of_mechanisms_stand_beside_dense_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "peak_apart", costs.peak)
    request = costs.BenchRequest([90], SETTING, (), lambda _: None)
    rows = {row["mechanism"]: row for row in costs.mechanism_rows(request)}
    assert list(rows) == list(costs.MECHANISMS)
    assert rows["dense"]["÷ dense"] == 1.0
    assert min(row["explanation ms"] for row in rows.values()) > 0
    assert {"flash MB", "one decision MB", "every bar MB", "stored matrices MB"} < next(
        costs.memory_rows(request)
    ).keys()


def test_operations_are_those_of_two_products() -> None:
    [row] = costs.operation_rows(costs.BenchRequest([400], SETTING, (), lambda _: None))
    layers, heads, dim = SETTING.layers, SETTING.heads, SETTING.head_dim
    assert row["dense GFLOP"] == 4 * layers * heads * dim * 400**2 / 1e9
    assert row["ProbSparse GFLOP"] < row["dense GFLOP"]


def test_gradients_by_length_are_those_of_pytorch() -> None:
    inputs = draw(SETTING, 60)
    ours = costs.backward(inputs, costs.attended)
    causal = partial(functional.scaled_dot_product_attention, is_causal=True)
    theirs = costs.backward(inputs, causal)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert min(costs.length_row(SETTING, inputs).values()) > 0


def test_a_peak_is_that_of_a_process_of_its_own() -> None:
    held = bytearray(300_000_000)
    assert 0 <= costs.peak_apart("one decision MB", 512) < len(held) / 2e6


def test_what_cannot_be_measured_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_attention.py").write_text("NOTHING = 3", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in (("gone", "gone"), ("NOTHING", "is no function")):
        assert invoke(["bench", "attention", "--compare", f"my_attention:{name}"]) != 0
        assert reason in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert invoke(["bench", "attention", "--section", "speed"]) != 0
    assert "choose explanation, layer" in capsys.readouterr().err
    assert invoke(["bench", "attention", "--device", "cuda"]) != 0
    assert "leave it out" in capsys.readouterr().err
    assert invoke(["bench", "attention", "--device", "gpu"]) != 0
    assert "choose one of cpu, cuda" in capsys.readouterr().err
