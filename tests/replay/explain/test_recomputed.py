"""One recomputed decision: it equals the stored one, and its sums are complete."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import explained_runs
import numpy as np
import pytest
from explained_runs import CONTEXT, LAST, SMALL

from tracepaper.replay.document.values import Paragraph, Table
from tracepaper.replay.explain.decision_document import read_decision
from tracepaper.replay.explain.recompute import (
    SEEDS,
    Full,
    FullAttribution,
    attribute,
    delete,
    explain_fully,
    moves_of,
)
from tracepaper.replay.explain.recomputed import full_document
from tracepaper.replay.report.past import open_past
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch
from tracepaper.strategies.forecasters.attribution import Contributions, Figures, Probe
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.time_buckets import cells_by_age, uniform_rollout
from tracepaper.strategies.units import percent


@pytest.fixture(scope="module")
def database() -> Path:
    return explained_runs.recorded()


@pytest.fixture(scope="module")
def full(database: Path) -> Full:
    return explain_fully(open_past(database, explained_runs.run_id(database), LAST))


def test_the_forecast_is_the_stored_one(full: Full) -> None:
    assert full.agreement.horizon == 30
    stored, again = full.agreement.stored, full.agreement.recomputed
    assert again.mean_return == pytest.approx(stored.mean_return, rel=1e-3)
    assert again.lean == pytest.approx(stored.lean, abs=1e-4)


def test_the_bars_sum_to_the_stored_buckets(full: Full) -> None:
    attribution = full.attribution
    assert len(attribution.weights) == SMALL.receptive_field
    assert sum(attribution.weights) == pytest.approx(1.0, abs=1e-6)
    assert attribution.l1_error < 1e-6
    assert attribution.largest_bucket_difference is not None
    assert attribution.largest_bucket_difference < 1e-6


def test_beside_the_stored_row_stands_how_far_it_is_from_that_of_uniform_attention(
    database: Path, full: Full
) -> None:
    stored, told_document = read_decision(database, explained_runs.run_id(database), LAST)
    uniform = uniform_rollout(SMALL.layers, SMALL.window)
    exact = 0.5 * np.abs(np.array(full.attribution.weights)[::-1] - uniform).sum()
    share = stored.content_share
    assert share is not None
    assert 0.0 < share <= exact + 1e-6  # blocks hide what moves within them
    (table,) = [
        part for part in told_document.parts if isinstance(part, Table) and part.key == "looked"
    ]
    assert f"from that of uniform attention by {percent(share, 1)}" in table.notes[-1]
    weights = np.array([[row["weight"] for row in stored.buckets]], dtype=np.float32)
    position = stored.decision["open_time_ms"] // stored.run["interval_ms"]
    cells = cells_by_age(weights, np.array([position]), 64)[0]
    entropy = -(cells[cells > 0] * np.log(cells[cells > 0])).sum() / np.log(len(cells))
    assert f"entropy by age {percent(entropy, 1)} of the maximum" in table.notes[-2]


def test_contributions_add_up_by_feature_and_by_bar(full: Full) -> None:
    moves = full.moves
    moved = moves.forecast - moves.neutral
    by_feature = sum(move.all_bars for move in moves.features)
    assert by_feature == pytest.approx(sum(moves.by_bar))
    assert by_feature - moved == pytest.approx(moves.gap)
    assert abs(moves.gap) < 0.05 * abs(moved)
    assert sum(move.decided_bar for move in moves.features) == pytest.approx(moves.by_bar[-1])
    assert moves.rank_correlation is not None
    assert -1.0 <= moves.rank_correlation <= 1.0


def test_the_bars_that_moved_it_most_come_first(full: Full) -> None:
    sizes = [abs(move.added) for move in full.moves.bars]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(abs(added) for added in full.moves.by_bar)
    for move in full.moves.bars:
        place = full.attribution.open_time_ms.index(move.open_time_ms)
        assert move.age == len(full.attribution.weights) - 1 - place
        assert move.weight == full.attribution.weights[place]


def test_the_deletion_test_compares_equally_many_bars(full: Full) -> None:
    deletion = full.deletion
    orders = ("rollout", "relevance", "newest", "random")
    compared = [trial for order in orders for trial in deletion.of(order)]
    assert {trial.bars for trial in compared} == {deletion.bars}
    assert [trial.seed for trial in deletion.of("random")] == list(SEEDS)
    assert deletion.of("past")[0].bars == len(full.attribution.weights) - 1
    assert len({trial.mean_return for trial in deletion.of("random")}) > 1


@pytest.mark.parametrize(
    ("weights", "relevance", "alone", "beat"),
    [
        ((0.1, 0.5, 0.1, 0.2, 0.1), (0.0, -8.0, 0.0, 4.0, 1.0), 0.0, ("rollout", "relevance")),
        ((0.1, 0.5, 0.1, 0.2, 0.1), (0.0, 0.0, 8.0, 4.0, 1.0), 0.0, ("rollout",)),
        ((0.1, 0.1, 0.1, 0.6, 0.1), (0.0, 0.0, 0.0, 4.0, 1.0), 0.0, ()),
        ((0.1, 0.5, 0.1, 0.2, 0.1), (0.0, -8.0, 0.0, 4.0, 1.0), -20.0, ()),  # by deletion alone
    ],
)
def test_an_order_that_knows_what_decides_beats_recency_and_it_is_said_first(
    weights: tuple[float, ...],
    relevance: tuple[float, ...],
    alone: float,
    beat: tuple[str, ...],
    database: Path,
    full: Full,
) -> None:
    class Additive(Probe):
        """Forecasts the sum of its rows, plus *alone* if the second is there without the first."""

        def __init__(self) -> None:
            self.added = np.array([0.0, 8.0, 0.0, 4.0, 1.0])

        def without(self, bars: object) -> Figures:
            assert isinstance(bars, list | range)
            left = float(np.delete(self.added, list(bars)).sum())
            left += alone if 0 in bars and 1 not in bars else 0.0
            return Figures(left, -left)

    attribution = FullAttribution(tuple(range(5)), (1.0,) * 5, weights, 0.0, 0.0)
    deletion = delete(Additive(), Figures(13.0, -13.0), attribution, np.array(relevance))
    assert deletion.bars == 1
    moved = 8.0 if max(weights) == weights[1] else 4.0
    assert [(trial.mean_return, trial.left) for trial in deletion.of("rollout")] == [
        (moved, 12.0 - moved - alone)
    ]
    assert [(trial.lean, trial.left) for trial in deletion.of("newest")] == [(4.0, 8.0)]
    assert [trial.mean_return for trial in deletion.of("decided")] == [1.0]
    assert [trial.mean_return for trial in deletion.of("past")] == [12.0]
    assert deletion.beat_recency == beat
    stored, heading = read_decision(database, explained_runs.run_id(database), LAST)
    first = full_document(stored, heading, replace(full, deletion=deletion), None, None).parts[0]
    assert isinstance(first, Paragraph)
    assert (" and ".join(beat) or "neither rollout nor relevance") in first.text


def test_moves_are_sums_of_the_table() -> None:
    table = np.array([[1.0, -2.0], [0.5, 0.25], [4.0, -1.0]])
    attribution = FullAttribution((0, 60_000, 120_000), (1.0,) * 3, (0.2, 0.3, 0.5), 0.0, 0.0)
    moves = moves_of(
        Contributions(table, np.array([-2.0, 1.0, 3.0]), 3.0, 0.25),
        [0.1, -0.2],
        ("a", "b"),
        attribution,
    )
    assert moves.by_bar == (-1.0, 0.75, 3.0)
    assert [(m.feature, m.value, m.decided_bar, m.all_bars) for m in moves.features] == [
        ("a", 0.1, 4.0, 5.5),
        ("b", -0.2, -1.0, -2.75),
    ]
    assert [(m.age, m.feature) for m in moves.bars] == [(0, "a"), (2, "b"), (1, "a")]
    assert moves.gap == 0.0
    assert [m.relevance for m in moves.bars] == [3.0, -2.0, 1.0]
    assert moves.rank_correlation == pytest.approx(-1.0)


@pytest.mark.parametrize("bars", [1, 4])
def test_bars_that_are_all_alike_have_no_rank_correlation(bars: int) -> None:
    attribution = FullAttribution(tuple(range(bars)), (1.0,) * bars, (1 / bars,) * bars, 0.0, 0.0)
    table = np.arange(bars * 2, dtype=np.float64).reshape(bars, 2)
    moves = moves_of(
        Contributions(table, table[:, 0], 1.0, 0.0), [0.0, 0.0], ("a", "b"), attribution
    )
    assert moves.rank_correlation is None
    assert len(moves.bars) == bars


def test_bar_by_bar_runs_and_several_symbols_are_explained(tmp_path: Path) -> None:
    database = explained_runs.replayed(tmp_path, symbols=("AAAUSDT", "BBBUSDT"), mode="step")
    run_id = explained_runs.run_id(database)
    with Reader.open(database) as reader:
        last = reader.stored_run(run_id).step_count - 2  # the last step is the run's end
    names = set()
    for sequence in (last, last - 1):
        past = open_past(database, run_id, sequence)
        names.add(past.decided.instrument)
        assert len(past.bars) == CONTEXT
        full = explain_fully(past)
        assert full.attribution.largest_bucket_difference is not None
        assert full.attribution.largest_bucket_difference < 1e-6
        assert full.agreement.recomputed.lean == pytest.approx(full.agreement.stored.lean, abs=1e-4)
    assert names == {"linear:AAAUSDT", "linear:BBBUSDT"}


def test_a_model_that_sees_its_whole_window_is_explained(tmp_path: Path) -> None:
    classic = FlashConfig(dim=16, layers=2, heads=2, window=64, horizons=(5, 30), mask="full")
    database = explained_runs.replayed(tmp_path, network=classic, mode="step", bars=640)
    full = explain_fully(open_past(database, explained_runs.run_id(database), 640))
    assert len(full.attribution.weights) == len(full.moves.by_bar) == 64
    assert full.attribution.largest_bucket_difference is not None
    assert full.attribution.largest_bucket_difference < 1e-6
    stored, again = full.agreement.stored, full.agreement.recomputed
    assert again.mean_return == pytest.approx(stored.mean_return, rel=1e-3)


def test_a_lost_or_damaged_checkpoint_is_refused(database: Path, tmp_path: Path) -> None:
    run_id = explained_runs.run_id(database)
    alone = tmp_path / "alone.db"
    with sqlite3.connect(database) as source, sqlite3.connect(alone) as target:
        source.backup(target)
    with pytest.raises(CheckpointMismatch, match="restore the folder"):
        attribute(open_past(alone, run_id, LAST))
    kept = tmp_path / "alone.db.checkpoints"
    shutil.copytree(database.with_name(database.name + ".checkpoints"), kept)
    weights = next(kept.glob("*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointMismatch):
        attribute(open_past(alone, run_id, LAST))


def test_the_decided_bar_is_never_among_the_heaviest(full: Full) -> None:
    newest = len(full.attribution.weights) - 1
    everything = full.attribution.heaviest(newest + 1)
    assert newest not in everything
    assert len(everything) == newest
    weights = [full.attribution.weights[place] for place in everything]
    assert weights == sorted(weights, reverse=True)
    tied = replace(full.attribution, weights=(0.5, 0.5, 0.0))
    assert tied.heaviest(1) == [0]
