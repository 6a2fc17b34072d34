"""The attention bench: its routes agree, its medians are medians, its figures can be shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from attention_cases import Case
from figures import MEASURED_ON

from tracepaper.daemon.cli import invoke
from tracepaper.replay.bench import routes, workloads
from tracepaper.replay.bench.attention import DENSE_MAX, Printer, measure, plot
from tracepaper.replay.bench.routes import (
    BARS_A_KEY,
    MECHANISMS,
    ROUNDS_MIN,
    Linformer,
    Peaks,
    SparseQueries,
    implementation,
    interleaved,
)
from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid, DataInvalid
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


MINE = """
from torch.nn.functional import scaled_dot_product_attention


def attend(inputs, mask):
    print("mine")
    return [scaled_dot_product_attention(*layer, is_causal=True) for layer in zip(*inputs)]


def two(inputs, mask):
    return inputs.queries[0] @ inputs.keys[0].mT


NOTHING = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module in the working folder that holds a user's implementations."""
    (tmp_path / "my_attention.py").write_text(MINE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_attention"


def test_routes_take_turns_and_the_median_is_taken() -> None:
    order: list[str] = []
    clock = ScriptedClock([9.0, 1.0, 2.0, 1.0, 4.0, 1.0])
    seconds = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, clock=clock
    )
    assert seconds == {"a": 4.0, "b": 1.0}
    assert order == ["a", "b"] * (1 + ROUNDS_MIN)  # a warm-up, then whole rounds


def test_every_route_gives_the_same_row() -> None:
    inputs = workloads.draw(SETTING, 90)
    for mask in (Mask.full(), Mask(), Mask.window(30)):
        sums = workloads.forward(inputs, mask)
        row = workloads.explain(inputs, sums, mask)
        wide = [(query.double(), key.double()) for query, key in zip(*inputs[:2], strict=True)]
        matrices = [reference.attention_matrix(query, key, mask) for query, key in wide]
        made = Case(inputs.queries, inputs.keys, sums, matrices, mask)
        wanted = reference.rollout(matrices, mask)[:, -1:]
        for found in (
            row,
            workloads.dense(inputs, mask).weights,
            workloads.explain_many(inputs, sums, mask)[:, -1:],
        ):
            made.hold(found, wanted)


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


def test_figures_are_plain_numbers_that_can_be_shown(tmp_path: Path, mine: str) -> None:
    heard: list[tuple[str, int]] = []  # with how many lines were printed before
    shown: list[str] = []
    figures = measure(
        [64, 128],
        memory=False,
        compare=[f"{mine}:two"],
        tell=lambda sentence: heard.append((sentence, len(shown))),
        show=Printer(shown.append),
    )
    assert msgspec.json.decode(msgspec.json.encode(figures)) == figures
    assert [row["bars"] for row in figures["attention"]] == [64] * 3 + [128] * 3
    assert all(row["ours_s"] > 0 and row["dense_s"] > 0 for row in figures["attention"])
    assert [row["mechanism"] for row in figures["mechanisms"]] == [*MECHANISMS] * 2
    assert all(row["flops"] > 0 < 1e6 * row["forward_s"] for row in figures["mechanisms"])
    far = [row["distance"] for row in figures["mechanisms"] if "distance" in row]
    assert len(far) == 4
    assert all(0 < one < 1 for one in far)
    assert figures["live"]["step_ratio"] > 0
    assert heard[:2] == [("64 bars, causal", 0), ("64 bars, window:1088", 3)]
    assert MEASURED_ON.fullmatch(figures["machine"]["line"])
    titles = [line.strip() for line in shown if line.startswith("\n")]
    assert titles == [
        "an explanation beside the flash forward",
        "other forms",
        "other mechanisms, causal",
        "the default network, live and over known bars",
    ]
    counts = [len(figures[kind]) for kind in ("attention", "forms", "mechanisms")]
    assert len(shown) == 2 * 4 + sum(counts) + 3 * (1 + (figures["live_torch"] is not None))
    assert "explain ms" in shown[1]
    assert "    64  causal" in shown[2].replace("      causal", "causal")
    own = [row for row in figures["forms"] if row["route"] == f"{mine}:two"]
    assert [row["flops"] for row in own] == [2 * 4 * 32 * row["bars"] ** 2 for row in own]
    assert [row["bars"] for row in own] == [64] * 3 + [128] * 3
    plot(figures, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def peaks() -> Iterator[Peaks]:
    with Peaks() as found:
        yield found


def test_forms_give_the_rows_that_they_are_named_after() -> None:
    inputs, mask = workloads.draw(SETTING, 60), Mask.window(25)
    sums = workloads.forward(inputs, mask)
    pairs = zip(inputs.queries, inputs.keys, strict=True)
    matrices = [reference.attention_matrix(one, other, mask) for one, other in pairs]
    for form, options in (
        ("max fusion", {"fusion": "max"}),
        ("discard", {"discard_ratio": 0.5}),
    ):
        dense = reference.rollout(matrices, mask, **options)[:, -1:]
        torch.testing.assert_close(workloads.FORMS[form](inputs, sums, mask), dense)
    gradient = workloads.FORMS["gradient"](inputs, sums, mask)
    torch.testing.assert_close(gradient.sum(), torch.tensor(1.0))


def test_each_mechanism_explains_its_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = workloads.draw(SETTING, 300)
    rows = {name: one.make(inputs).explain()[0, 0] for name, one in MECHANISMS.items()}
    for row in rows.values():
        torch.testing.assert_close(row.sum(), torch.tensor(1.0))
    pairs = list(zip(inputs.queries, inputs.keys, strict=True))
    matrices = [reference.attention_matrix(*pair, Mask()) for pair in pairs]
    wanted = reference.rollout(matrices, Mask())[0, -1]
    torch.testing.assert_close(rows["chunked"], wanted)
    sparse, causal = SparseQueries(inputs), reference.visible(300, Mask()).float()
    matrices = []
    for one in sparse.forward():
        dense = (
            (causal / causal.sum(dim=1, keepdim=True)).expand(1, SETTING.heads, 300, 300).clone()
        )
        at = one.active[..., None].expand(-1, -1, -1, 300)
        matrices.append(dense.scatter(2, at, one.weights))
        assert (one.active == 299).any(dim=-1).all()
    torch.testing.assert_close(rows["probsparse"], reference.rollout(matrices, Mask.full())[0, -1])
    monkeypatch.setattr(routes, "POOLED", 50)  # 50 means of 6 bars
    shared = torch.block_diag(*[torch.full((1, 6), 1 / 6)] * 50)  # [mean, bar]
    matrices = [
        (query @ (shared @ key).mT / SETTING.head_dim**0.5).softmax(dim=-1) @ shared
        for query, key in pairs
    ]
    found = Linformer(inputs)
    torch.testing.assert_close(
        found.explain()[0, 0], reference.rollout(matrices, Mask.full())[0, -1]
    )
    entropy = torch.special.entr(matrices[0][0, :, -1]).sum(dim=-1)
    last = matrices[0][0, :, -1] @ (6 * shared.mT)  # of the means
    torch.testing.assert_close(found.confidence(last), 1 - entropy / math.log(300))
    outputs = [matrix @ value for matrix, value in zip(matrices, inputs.values, strict=True)]
    torch.testing.assert_close(found.forward(), outputs)
    assert rows["cross"].shape == (300 + 300 // BARS_A_KEY,)
    assert float(rows["cross"][299]) == pytest.approx(0.5**SETTING.layers)


@pytest.mark.parametrize("mask", [Mask.full(), Mask(), Mask.window(7), Mask.window(90)])
def test_operations_of_an_explanation_are_those_of_rows_that_have_weight(mask: Mask) -> None:
    bars = 40
    reached, pairs = torch.zeros(bars), 0
    reached[-1] = 1
    for _ in range(SETTING.layers):
        seen = reference.visible(bars, mask)[reached > 0]
        pairs += int(seen.sum())
        reached[seen.any(0)] = 1
    wanted = 2 * SETTING.heads * SETTING.head_dim * pairs
    assert workloads.explained_operations(SETTING, bars, mask) == wanted


def test_what_is_no_function_cannot_be_compared(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigInvalid, match="is no function"):
        implementation(f"{mine}:NOTHING")
    assert invoke(["bench", "attention", "--compare", f"{mine}:gone"]) != 0
    assert "gone" in capsys.readouterr().err


def test_peaks_come_from_a_process_of_their_own(peaks: Peaks) -> None:
    bars = DENSE_MAX // 2
    dense, flash = peaks.of("dense", "causal", bars), peaks.of("flash", "causal", bars)
    assert flash < 1 << 25
    assert dense > 4 * 4 * bars**2 * 4  # all the matrices of four layers of four heads
    with pytest.raises(DataInvalid, match="Measuring nothing at 9 bars failed"):
        peaks.of("nothing", "causal", 9)
    assert peaks.of("flash", "causal", bars) == pytest.approx(flash, rel=0.2)
