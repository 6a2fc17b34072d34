"""Inspections find what was planted: bars, a window, a column, a shift; and nothing else."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from learning import DAY_BARS, HORIZONS, by_forecaster, segment, split
from torch import Tensor

from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.dataset import Dataset, alone
from tracepaper.replay.learning.fitted import Mix
from tracepaper.replay.learning.inspection import inspections
from tracepaper.replay.learning.inspection.inspections import (
    WeightedLinear,
    adaptive_widths,
    agreement,
    context_ablation,
    feature_permutation,
    interval_width,
    methods,
)
from tracepaper.replay.learning.inspection.model import Subject
from tracepaper.replay.learning.samples import targets
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.replay.learning.windows import predict
from tracepaper.strategies.attention.methods import PLAIN, Rollout
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.forecasters.tabular import ROW_KINDS, GlmModel, TrainedRows
from tracepaper.strategies.networks.architecture import (
    BarWeights,
    ExplainedOutputs,
    Network,
    Outputs,
)
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

WINDOW = 32
AGES = (3, 11, 20)  # the bars that the planted networks depend on
ELSEWHERE = tuple(age for age in range(WINDOW) if age not in AGES)
HORIZON = 30
RETURN = schema("v2-1m").names.index("return_1")


@dataclass(frozen=True)
class PlantedConfig:
    features: int = 78
    dim: int = 1
    layers: int = 1
    window: int = WINDOW
    receptive_field: int = WINDOW
    horizons: tuple[int, ...] = HORIZONS


class PlantedNetwork(Network):
    """Answers from ``return_1`` of the bars at AGES only; its rollout points at *marked*."""

    def __init__(self, marked: tuple[int, ...] = AGES, *, any_length: bool = True) -> None:
        super().__init__(PlantedConfig())
        self.takes_any_length = any_length  # type: ignore[misc]
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0.6, 0.3]))
        self.marked = marked

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Outputs:
        del positions
        values = torch.zeros(len(x))
        for weight, age in zip(self.weight, AGES, strict=True):
            if age < x.shape[1]:
                values = values + weight * x[:, -1 - age, RETURN]
        every = values[:, None, None].expand(-1, 1, len(HORIZONS))
        logits = torch.zeros(*every.shape, 3)
        dof = torch.full_like(every, 5.0)
        return Outputs(every, torch.zeros_like(every), dof, logits, every, None, None)

    def explain(
        self, x: Tensor, positions: Tensor, method: Rollout = PLAIN, *, half: bool = False
    ) -> ExplainedOutputs:
        del method, half
        weights = torch.zeros(1, 1, x.shape[1])
        weights[0, 0, [x.shape[1] - 1 - age for age in self.marked]] = 1 / len(self.marked)
        rollout = BarWeights(weights, torch.zeros(1, 1))
        return ExplainedOutputs(self(x, positions), rollout, torch.ones(1, 1))

    def content_free(self) -> float:
        return 0.0


def material_of(bars: Segment) -> Dataset:
    return Dataset([], alone([bars]), split(1.5, 1.8, 2.4), schema("v2-1m"), HORIZONS)


@pytest.fixture(scope="module")
def plain() -> Segment:
    return segment(16 * DAY_BARS)


@pytest.fixture(scope="module")
def material(plain: Segment) -> Dataset:
    return material_of(plain)


@pytest.fixture(scope="module")
def month() -> Segment:
    """Return bars of so many days that a mean of them has an error."""
    return segment(36 * DAY_BARS)


@pytest.fixture(scope="module")
def leaking(month: Segment) -> Dataset:
    """Return bars whose ``return_1`` is the log variance to the horizon, AGES[2] bars later."""
    values = month.values.copy()
    labels = targets(alone([month])[0], HORIZONS)["variance"][0, :, HORIZONS.index(HORIZON)]
    logs = np.nan_to_num(np.log(labels), nan=0.0)
    values[: -AGES[2], RETURN] = logs[AGES[2] :]
    values[: month.first] = np.nan
    return material_of(replace(month, values=values))


def knowing() -> PlantedNetwork:
    """Return a network that reads the columns of ``leaking``."""
    network = PlantedNetwork()
    network.weight = torch.nn.Parameter(torch.tensor([0.0, 0.0, 1.0]))
    return network


def cells(finding: Table, **chosen: str) -> dict[str, Any]:
    """Return the one row with these cells."""
    [match] = [row for row in finding.records() if all(row[k] == v for k, v in chosen.items())]
    return match


def value(cell: Any) -> float:
    """Return a cell's value without its error."""
    return float(cell[0] if isinstance(cell, tuple) else cell)


def beyond(cell: tuple[float, float]) -> float:
    """Return a value in units of its error."""
    return cell[0] / cell[1]


def test_bars_that_matter_are_found_by_the_right_order_and_not_by_another(
    month: Segment,
) -> None:
    subject = Subject(material_of(month), HORIZON, PlantedNetwork())
    [areas] = inspections.perturbations(subject, 40)
    for target in ("log variance", "mean"):
        for name in ("rollout", "integrated gradients"):
            row = cells(areas, of=target, order=name)
            assert beyond(row["deletion - random"]) > 5
            assert beyond(row["insertion - random"]) < -5
            assert beyond(row["deletion - recency"]) > 5
        assert cells(areas, of=target, order="random")["deletion - random"] == (0.0, 0.0)


def test_a_rollout_that_points_elsewhere_is_worse_than_random(material: Dataset) -> None:
    wrong = Subject(material, HORIZON, PlantedNetwork(marked=ELSEWHERE))
    row = cells(inspections.perturbations(wrong, 40)[0], of="mean", order="rollout")
    assert row["deletion - random"][0] < 0.0 < row["insertion - random"][0]


def test_ranks_go_from_high_to_low_and_prefer_the_newest_of_equals() -> None:
    assert inspections.ranked(np.array([0.0, 2.0, 0.0, 1.0])).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("any_length", [True, False])
def test_a_window_that_matters_is_missed_when_it_is_cut(
    leaking: Dataset, *, any_length: bool
) -> None:
    network = knowing()
    network.takes_any_length = any_length  # type: ignore[misc]
    subject = Subject(leaking, HORIZON, network)
    [table] = context_ablation(subject, 120)
    whole, half, *_ = by_forecaster(table.records()[: len(table.rows) // 2], HORIZON).values()
    assert whole["value"][0] == pytest.approx(0.0, abs=1e-3)
    assert half["forecaster"] == "1/2: 16 bars"  # the bar of age 20 is gone
    assert beyond(half["difference"]) < -5
    assert len(table.rows) == 2 * len(HORIZONS) * 6
    assert ("restarts" in table.notes[0]) is any_length


def test_the_column_that_is_used_is_found_and_no_other(leaking: Dataset) -> None:
    few = replace(leaking, schema=schema("v2-1m"))
    [table] = feature_permutation(Subject(few, HORIZON, knowing()), 400)
    assert table.records()[0]["feature"] in {"return_1", "all of return"}
    used = cells(table, feature="return_1")
    assert beyond(used["QLIKE 30m"]) > 5
    assert cells(table, feature="all of return")["QLIKE 30m"] == used["QLIKE 30m"]
    for row in table.records():
        if row["feature"] not in {"return_1", "all of return"}:
            assert row["QLIKE 30m"] == (0.0, 0.0)
    # The weekday is one number all day long: blocks of a day cannot take it from its bars.
    assert "weekday_sin" in table.notes[0]
    assert "hour_sin" not in table.notes[0]


def test_blocks_change_places_within_their_day(plain: Segment) -> None:
    order = inspections.permutation(plain, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(len(plain)))
    assert (order[: plain.first] == np.arange(plain.first)).all()
    day = plain.open_time_ms // 86_400_000
    assert (day[order] == day).all()
    hours = order[DAY_BARS : 2 * DAY_BARS].reshape(24, 60)
    assert (np.diff(hours, axis=1) == 1).all()
    assert (np.diff(hours[:, 0]) < 0).any()


def test_families_are_one_measure_over_several_windows() -> None:
    names = ("return_1", "return_4h", "hour_sin", "hour_cos", "rsi_16", "garman_klass_6")
    assert inspections.families(names) == {"return": [0, 1], "hour": [2, 3]}


# --- intervals


def test_a_shift_of_volatility_is_followed_online_and_not_by_a_interval_width() -> None:
    generator = np.random.default_rng(5)
    scale = np.repeat([1.0, 2.0], 4_000)
    scores = np.abs(generator.normal(size=8_000) * scale)
    before = np.abs(generator.normal(size=2_000))
    times = np.arange(8_000)
    widths = adaptive_widths(scores, times, times + 30, before)
    late = slice(5_000, None)
    assert 0.885 < (scores <= widths)[late].mean() < 0.915
    assert (scores <= interval_width(before))[late].mean() < 0.65
    assert 0.885 < (scores <= interval_width(before))[:4_000].mean() < 0.915


def test_a_width_depends_on_no_score_that_is_not_known_yet() -> None:
    scores = np.abs(np.random.default_rng(6).normal(size=300))
    times = np.arange(300)
    widths = adaptive_widths(scores, times, times + 30, np.ones(50))
    changed = scores.copy()
    changed[200:] = 99.0
    again = adaptive_widths(changed, times, times + 30, np.ones(50))
    assert (widths[:230] == again[:230]).all()
    assert (widths[230:] != again[230:]).any()


def test_a_width_is_that_of_the_share_and_the_oldest_score_leaves() -> None:
    scores = np.array([3.0, 1.0, 2.0])
    assert [interval_width(scores, misses) for misses in (0.5, 0.45, 0.0, 1.0)] == [
        2.0, 3.0, float("inf"), 0.0,
    ]  # fmt: skip
    assert interval_width(np.arange(1.0, 100.0)) == 90.0
    before = np.append(np.full(500, 9.0), np.ones(1_000))
    [width] = adaptive_widths(np.zeros(1), np.zeros(1, np.int64), np.ones(1, np.int64), before)
    assert width == 1.0


def test_intervals_are_shown_with_mc_dropout_where_the_network_drops(material: Dataset) -> None:
    torch.manual_seed(0)
    config = FlashConfig(dim=4, layers=1, heads=1, window=2, horizons=HORIZONS, dropout=0.2)
    network = FlashNetwork(config)
    subject = Subject(material, HORIZON, network)
    [interval] = inspections.intervals(subject)
    rows = {row["interval"]: row for row in interval.records()}
    assert list(rows) == ["own", "fixed conformal", "adaptive conformal", "MC dropout"]
    assert 0.87 < value(rows["adaptive conformal"]["coverage"]) < 0.93
    assert rows["MC dropout"]["coverage"] != rows["own"]["coverage"]
    bars = material.segments[0]
    chosen = np.arange(bars.first + 10, bars.first + 60)
    document, other = (predict(network, bars, chosen, dropout=True) for _ in range(2))
    assert not np.array_equal(document["mean"], other["mean"])  # each pass drops other numbers
    assert not network.training
    assert not any(module.training for module in network.modules())
    assert inspections.intervals(subject)[0].records() == interval.records()
    still = Subject(material, HORIZON, FlashNetwork(replace(config, dropout=0.0)))
    [summary] = inspections.intervals(still)
    assert "trained without dropout" in summary.notes[0]
    assert "MC dropout" not in {row["interval"] for row in summary.records()}


# --- attributions of others


def test_the_methods_are_exact_where_the_answer_is_linear() -> None:
    weights = torch.tensor([2.0, -1.0, 0.5, 0.0, 3.0])
    torch.manual_seed(1)
    for method in methods(is_smooth=True).values():
        scores = method(lambda present: present.float() @ weights + 7.0, 5)
        assert scores == pytest.approx(weights.numpy(), abs=1e-3)


def test_the_surrogate_weighs_its_samples() -> None:
    inputs = torch.tensor([[0.0], [1.0], [1.0]])
    model = WeightedLinear()
    model.fit([(inputs, torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 3.0, 1.0]))])
    assert model.representation().tolist() == pytest.approx([2.0])


def test_a_rollout_that_is_right_agrees_with_others_and_one_that_is_not_does_not(
    material: Dataset,
) -> None:
    [right] = inspections.attributions(Subject(material, HORIZON, PlantedNetwork()), 8)
    [wrong] = inspections.attributions(Subject(material, HORIZON, PlantedNetwork(ELSEWHERE)), 8)
    for method in ("integrated gradients", "KernelSHAP", "LIME"):
        agreed = cells(right, of="mean", method=method)["rank correlation"]
        assert agreed[0] > 0.5
        assert agreed[0] > cells(wrong, of="mean", method=method)["rank correlation"][0] + 0.3


def test_exact_contributions_of_a_row_are_those_of_others(material: Dataset) -> None:
    count, generator = 30, np.random.default_rng(2)
    material = replace(  # the samples of both methods are too few for all columns
        material,
        panels=alone(replace(bars, values=bars.values[:, :count]) for bars in material.segments),
        schema=replace(material.schema, names=material.schema.names[:count]),
    )
    subject = Subject(material, HORIZON)
    arrays = {
        "log_variance_weights": generator.normal(size=(2, count)),
        "mean_weights": generator.normal(size=(2, count)),
        "log_variance_base": np.zeros(2),
        "mean_base": np.zeros(2),
        "centre": subject.neutral.astype(np.float64),
    }
    model = GlmModel(arrays)
    trained = TrainedRows(
        ROW_KINDS["glm"], model, material.schema, HORIZONS, "", "", (1.0, 1.0), None
    )
    [table] = inspections.attributions(Subject(material, HORIZON, trained=trained), 2)
    for row in table.records():
        assert value(row["rank correlation"]) > 0.9
    assert {row["method"] for row in table.records()} == {"KernelSHAP", "LIME"}
    with pytest.raises(ConfigInvalid, match="--inspect context needs a model that sees"):
        context_ablation(Subject(material, HORIZON, trained=trained), 2)


def test_agreement_is_of_sizes() -> None:
    assert agreement(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 4.0, -9.0])) == pytest.approx(1.0)
    assert agreement(np.zeros(3), np.array([1.0, 2.0, 3.0])) == 0.0


def test_without_captum_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigInvalid, match=r"pip install 'tracepaper\[attributions\]"):
        methods(is_smooth=True)


def test_an_ensemble_is_as_deaf_to_a_half_as_its_share_says(leaking: Dataset) -> None:
    """The planted network depends on old bars, the glm only on column 1 of its row."""
    count = len(leaking.schema.names)
    arrays: dict[str, Any] = {}
    arrays |= {name: np.zeros((2, count)) for name in ("log_variance_weights", "mean_weights")}
    arrays["log_variance_weights"][:, 1] = 1.0
    arrays |= {name: np.zeros(2) for name in ("log_variance_base", "mean_base")}
    arrays["centre"] = np.zeros(count)
    model = GlmModel(arrays)
    rows = TrainedRows(ROW_KINDS["glm"], model, leaking.schema, HORIZONS, "", "", (1.0, 1.0), None)

    def mixed(share: float) -> Subject:
        mix = Mix(np.full(2, share), np.ones(2))
        return Subject(leaking, HORIZON, knowing(), rows, mix)

    unmixed = Subject(leaking, HORIZON, knowing())
    [of_network] = context_ablation(unmixed, 40)
    [all_network], [no_network] = (context_ablation(mixed(share), 40) for share in (1.0, 0.0))
    assert all_network.records() == of_network.records()
    assert any(value(row["difference"]) != 0 for row in all_network.records() if row["difference"])
    kept = [row for row in no_network.records() if row["figure"] == "QLIKE" and row["difference"]]
    assert all(value(row["difference"]) == 0 for row in kept)
    [permuted_rows] = feature_permutation(mixed(0.0), 400)
    used = [row["feature"] for row in permuted_rows.records() if value(row["QLIKE 30m"]) != 0]
    assert leaking.schema.names[1] in used
    assert "return_1" not in used
    [permuted_network] = feature_permutation(mixed(1.0), 400)
    used = [row["feature"] for row in permuted_network.records() if value(row["QLIKE 30m"]) != 0]
    assert "return_1" in used
    assert leaking.schema.names[1] not in used
    keys = {table.key for table in inspections.attributions(mixed(0.5), 2)}
    assert keys == {"attributions", "attributions_rows"}


def test_the_neutral_row_is_the_mean_of_the_training_part_fitted_or_read(material: Dataset) -> None:
    neutral = Subject(material, HORIZON).neutral
    [training] = material.samples(Part.TRAIN)
    values = training.segment.values[training.start : training.stop]
    assert neutral == pytest.approx(values.mean(axis=0, dtype=np.float64), abs=1e-6)
    stored = {"ridge": {"centre": np.arange(30.0)}}
    assert Subject(replace(material, stored=stored), HORIZON).neutral.tolist() == list(range(30))
