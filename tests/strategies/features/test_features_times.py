"""Schemas whose windows are times: exact as ``v1`` is, and a column means one thing everywhere."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from walks import MINUTE_MS, walk

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import REACHES, Window
from tracepaper.strategies.features.rows import (
    FeatureBlock,
    FeatureSchema,
    FeatureStreams,
    columns,
    compute,
    schema,
)
from tracepaper.strategies.features.v1 import SIGMA_FLOOR
from tracepaper.strategies.features.v2 import COLUMNS, CYCLES, FURTHER, SETS
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import DAY_MS

SOME = ("v2-1m", "v2-5m", "v2-15m", "v2-1h", "v2-1d", "tree-15m")
EVERY = tuple(sorted(SETS))
MORE = 240  # bars after the first row


def bars_of(
    found: FeatureSchema, *, seed: int = 1, flat: float = 0.1, more: int = MORE
) -> list[Bar]:
    interval_ms = REACHES[found.schema_id.split("-")[1]].interval_ms
    return walk(found.lookback + more, seed=seed, flat=flat, interval_ms=interval_ms)


@cache
def known(schema_id: str) -> tuple[FeatureSchema, list[Bar], FeatureBlock]:
    found = schema(schema_id)
    bars = bars_of(found)
    return found, bars, compute(found, columns(bars))


def row_of(schema_id: str) -> dict[str, float]:
    """Return the last row by the names of its columns."""
    found, _, block = known(schema_id)
    return dict(zip(found.names, block.values[-1].astype(float).tolist(), strict=True))


@pytest.mark.parametrize("schema_id", [*SOME, "tree-1m"])
def test_the_stream_equals_the_batch_in_every_bit(schema_id: str) -> None:
    found, bars, block = known(schema_id)
    stream = FeatureStreams(found)
    start = 0 if found.lookback < 200 else found.lookback - 2
    stream.warm(0, bars[:start])
    for i, bar in enumerate(bars[start:], start):
        [row], [sigma], [count] = stream.step([bar])
        assert (count >= found.lookback) == (i >= block.first)
        assert row.tobytes() == block.values[i].tobytes()
        assert np.array_equal(sigma, block.sigma[i], equal_nan=True)


@pytest.mark.parametrize("schema_id", EVERY)
def test_a_row_depends_on_exactly_its_lookback(schema_id: str) -> None:
    found, bars, endless = known(schema_id)
    window = bars[-found.lookback :]
    alone = compute(found, columns(window))
    assert alone.first == found.lookback - 1
    assert alone.values[-1].tobytes() == endless.values[-1].tobytes()
    assert alone.sigma[-1] == endless.sigma[-1]
    shocked = [replace(window[0], close=window[0].low // 2), *window[1:]]
    assert not np.array_equal(alone.values[-1], compute(found, columns(shocked)).values[-1])
    assert np.isnan(compute(found, columns(window[1:])).values).all()


@settings(max_examples=12, deadline=None)
@given(
    schema_id=st.sampled_from(SOME),
    seed=st.integers(0, 2**32 - 1),
    later=st.integers(1, MORE - 1),
)
def test_no_later_bar_moves_a_row(schema_id: str, seed: int, later: int) -> None:
    found, bars, before = known(schema_id)
    changed = found.lookback + later
    corrupted = bars[:changed] + bars_of(found, seed=seed, flat=0.5)[changed:]
    after = compute(found, columns(corrupted))
    assert before.values[:changed].tobytes() == after.values[:changed].tobytes()
    assert before.sigma[:changed].tobytes() == after.sigma[:changed].tobytes()
    assert not np.array_equal(before.values[changed], after.values[changed])


@settings(max_examples=12, deadline=None)
@given(
    schema_id=st.sampled_from(SOME),
    seed=st.integers(0, 2**32 - 1),
    flat=st.sampled_from([0.0, 0.4, 0.95, 0.995, 1.0]),
)
def test_rows_are_finite_and_clipped_however_flat_the_market(
    schema_id: str, seed: int, flat: float
) -> None:
    found = schema(schema_id)
    block = compute(found, columns(bars_of(found, seed=seed, flat=flat, more=60)))
    rows = block.values[block.first :]
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 5.0
    assert (block.sigma[block.first :] >= SIGMA_FLOOR).all()


def test_instruments_that_are_stepped_together_do_not_touch_each_other() -> None:
    found = schema("v2-15m")
    walks = [bars_of(found, seed=seed) for seed in range(5)]
    blocks = [compute(found, columns(bars)) for bars in walks]
    streams = FeatureStreams(found, streams=2)
    streams.extend(3)
    ages = [150 + 30 * place for place in range(5)]
    for place, age in enumerate(ages):
        streams.warm(place, walks[place][:age])
    rng = np.random.default_rng(3)
    for _ in range(80):
        group = rng.permutation(5)[: rng.integers(1, 6)].tolist()
        rows = streams.step([walks[place][ages[place]] for place in group], group)
        for index, place in enumerate(group):
            assert rows.values[index].tobytes() == blocks[place].values[ages[place]].tobytes()
            ages[place] += 1


def test_columns_are_the_same_at_every_interval() -> None:
    for family in ("v2", "tree"):
        names = {schema(f"{family}-{text}").names for text in REACHES}
        assert len(names) == 1
        assert len(set(names.pop())) == len(COLUMNS) + (len(FURTHER) if family == "tree" else 0)


def test_the_columns_of_a_tree_begin_with_those_of_a_network_in_every_bit() -> None:
    for text in ("1m", "15m", "1d"):
        tree, bars, block = known(f"tree-{text}")
        network = compute(schema(f"v2-{text}"), columns(bars))
        first = tree.lookback - 1
        wide = np.ascontiguousarray(block.values[first:, : network.values.shape[1]])
        assert wide.tobytes() == network.values[first:].tobytes()
        assert block.sigma[first:].tobytes() == network.sigma[first:].tobytes()


def test_lookbacks_leave_room_for_a_context() -> None:
    found = {schema_id: schema(schema_id).lookback for schema_id in EVERY}
    assert max(found["v2-1m"], found["v2-3m"], found["v2-5m"]) <= 600
    assert found["v2-15m"] == 192
    assert found["tree-15m"] == found["tree-1h"] == 481
    assert found["tree-1m"] == 5 * 1440 + 1


@pytest.mark.parametrize(("text", "bars"), [("5m", 48), ("15m", 16), ("1h", 4)])
def test_a_window_of_four_hours_is_so_many_bars(text: str, bars: int) -> None:
    found, walked, block = known(f"v2-{text}")
    close = np.array([bar.close for bar in walked], dtype=float)
    moves, sigma = np.diff(np.log(close)), float(block.sigma[-1])
    row = row_of(f"v2-{text}")
    realised = float(np.log(np.sqrt(np.mean(moves[-bars:] ** 2)) / sigma))
    assert row["realised_4h"] == pytest.approx(2 * realised, abs=1e-5)
    assert row["return_4h"] == pytest.approx(moves[-bars:].sum() / sigma / bars**0.5, abs=1e-5)
    day = DAY_MS // REACHES[text].interval_ms
    season = moves[len(moves) - day : len(moves) - day + bars]
    expected = float(np.log(np.sqrt(np.mean(season**2)) / sigma))
    assert row["yesterday_4h"] == pytest.approx(expected, abs=1e-5)
    assert found.names.index("yesterday_4h") == schema("v2-1m").names.index("yesterday_4h")


def test_sigma_is_half_of_four_hours_and_half_of_a_day() -> None:
    _, walked, block = known("v2-15m")
    moves = np.diff(np.log(np.array([bar.close for bar in walked], dtype=float)))
    expected = np.sqrt(0.5 * np.mean(moves[-16:] ** 2) + 0.5 * np.mean(moves[-96:] ** 2))
    assert block.sigma[-1] == pytest.approx(expected)


def test_shares_of_variance_mean_what_they_are_called() -> None:
    _, walked, _ = known("v2-15m")
    row = row_of("v2-15m")
    moves = np.diff(np.log(np.array([bar.close for bar in walked], dtype=float)))
    last = moves[-12:]
    square = float((last**2).sum())
    rising = float((last[last > 0] ** 2).sum())
    assert row["semivariance_12"] == pytest.approx(2 * (2 * rising / square - 1), abs=1e-4)
    bipower = np.pi / 2 * float((np.abs(last) * np.abs(moves[-13:-1])).sum())
    assert row["jumps_12"] == pytest.approx(2 * (1 - bipower / square), abs=1e-4)
    long = moves[-24:]
    quarticity = 24 * float((long**4).sum()) / (3 * float((long**2).sum()) ** 2)
    assert row["quarticity_24"] == pytest.approx(np.log(max(quarticity, 1 / 3)), abs=1e-4)


def test_the_tree_knows_the_same_hour_of_five_days() -> None:
    _, walked, block = known("tree-15m")
    moves = np.diff(np.log(np.array([bar.close for bar in walked], dtype=float)))
    hours = [moves[len(moves) - 96 * day :][:4] for day in range(1, 6)]
    logs = [float(np.log(np.sqrt(np.mean(hour**2)) / block.sigma[-1])) for hour in hours]
    row = row_of("tree-15m")
    assert row["seasonal_1d_1h"] == pytest.approx(logs[0], abs=1e-5)
    assert row["seasonal_5d_1h"] == pytest.approx(np.mean(logs), abs=1e-5)
    five = float(np.log(np.sqrt(np.mean(moves[-480:] ** 2)) / block.sigma[-1]))
    assert row["har_5d"] == pytest.approx(five, abs=1e-5)


def test_what_has_no_room_is_zero_and_the_interval_says_so() -> None:
    empty = {name for name, value in row_of("v2-1m").items() if value == 0.0}
    assert {"return_1d", "realised_5d", "yesterday_1h"} <= empty
    assert "realised_4h" not in empty
    assert row_of("v2-1h")["return_30m"] == 0.0
    assert row_of("v2-1d")["semivariance_1d"] == 0.0  # of one bar it is a sign
    levels = [row_of(f"v2-{text}")["interval"] for text in ("1m", "15m", "1h", "1d")]
    assert levels == sorted(levels)
    assert levels[1] == 0.0


@pytest.mark.parametrize(("text", "absent"), [("1m", ()), ("15m", ("15m",)), ("1h", ("15m", "1h"))])
def test_a_turn_of_the_day_follows_the_clock_and_needs_two_bars(
    text: str, absent: tuple[str, ...]
) -> None:
    found, bars, block = known(f"v2-{text}")
    minutes = np.array([bar.open_time_ms for bar in bars[-MORE:]]) / MINUTE_MS
    for turn in CYCLES:
        period = int(turn[:-1]) * (60 if turn[-1] == "h" else 1)
        angle = 2.0 * np.pi * (minutes % period) / period
        for name, wanted in (("sin", np.sin(angle)), ("cos", np.cos(angle))):
            row = block.values[-MORE:, found.names.index(f"cycle_{turn}_{name}")]
            np.testing.assert_allclose(row, 0.0 if turn in absent else wanted, atol=1e-6)


def test_an_interval_without_a_schema_is_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match=r"'v2-7m'.*v2-15m"):
        schema("v2-7m")


def test_a_window_is_made_of_powers_of_two() -> None:
    assert Window(13, 2).parts == [Window(8, 2), Window(4, 10), Window(1, 14)]
    assert Window(13, 2).reach == 15
    assert REACHES["1m"].interval_ms == MINUTE_MS
