"""Features look only back, remember exactly their lookback, stay finite, and mean their names."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from walks import MINUTE_MS, START_MS, walk

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.features.rolling import REACHES, Array, Window, Windows
from tracepaper.strategies.features.rows import (
    CandleArrays,
    FeatureBlock,
    FeatureSchema,
    FeatureStreams,
    columns,
    compute,
    schema,
    schema_ids,
)
from tracepaper.strategies.features.v2 import (
    COLUMNS,
    CYCLES,
    FAMILIES,
    SIGMA_FLOOR,
    FeatureBasis,
    FeatureColumn,
    column,
)
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import DAY_MS

SCHEMA = schema("v2-1m")
SOME = ("v2-1m", "v2-5m", "v2-15m", "v2-1h", "v2-1d", "tree-15m", "macd-15m")
EVERY = schema_ids()
MORE = 240  # bars after the first row


def bars_of(
    feature_schema: FeatureSchema, *, seed: int = 1, flat: float = 0.1, more: int = MORE
) -> list[Bar]:
    interval_ms = REACHES[feature_schema.schema_id.split("-")[1]].interval_ms
    return walk(feature_schema.lookback + more, seed=seed, flat=flat, interval_ms=interval_ms)


@cache
def computed(schema_id: str) -> tuple[FeatureSchema, list[Bar], FeatureBlock]:
    feature_schema = schema(schema_id)
    bars = bars_of(feature_schema)
    return feature_schema, bars, compute(feature_schema, columns(bars))


def row_of(schema_id: str) -> dict[str, float]:
    """Return the last row by the names of its columns."""
    feature_schema, _, block = computed(schema_id)
    return dict(zip(feature_schema.names, block.values[-1].astype(float).tolist(), strict=True))


@pytest.mark.parametrize("schema_id", [*SOME, "tree-1m"])
def test_the_stream_equals_the_batch_in_every_bit(schema_id: str) -> None:
    feature_schema, bars, block = computed(schema_id)
    stream = FeatureStreams(feature_schema)
    start = 0 if feature_schema.lookback < 200 else feature_schema.lookback - 2
    stream.warm(0, bars[:start])
    for i, bar in enumerate(bars[start:], start):
        [row], [sigma], [count] = stream.step([bar])
        assert (count >= feature_schema.lookback) == (i >= block.first)
        assert row.tobytes() == block.values[i].tobytes()
        assert np.array_equal(sigma, block.sigma[i], equal_nan=True)


@pytest.mark.parametrize("schema_id", EVERY)
def test_a_row_depends_on_exactly_its_lookback(schema_id: str) -> None:
    family, bars, endless = computed(schema_id)
    window = bars[-family.lookback :]
    alone = compute(family, columns(window))
    assert alone.first == family.lookback - 1
    assert alone.values[-1].tobytes() == endless.values[-1].tobytes()
    assert alone.sigma[-1] == endless.sigma[-1]
    shocked = [replace(window[0], close=window[0].low // 2), *window[1:]]
    assert not np.array_equal(alone.values[-1], compute(family, columns(shocked)).values[-1])
    assert np.isnan(compute(family, columns(window[1:])).values).all()


@settings(max_examples=12, deadline=None)
@given(
    schema_id=st.sampled_from(SOME), seed=st.integers(0, 2**32 - 1), later=st.integers(1, MORE - 1)
)
def test_no_later_bar_moves_a_row(schema_id: str, seed: int, later: int) -> None:
    feature_schema, bars, before = computed(schema_id)
    changed = feature_schema.lookback + later
    corrupted = bars[:changed] + bars_of(feature_schema, seed=seed, flat=0.5)[changed:]
    after = compute(feature_schema, columns(corrupted))
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
    feature_schema = schema(schema_id)
    block = compute(feature_schema, columns(bars_of(feature_schema, seed=seed, flat=flat, more=60)))
    rows = block.values[block.first :]
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 5.0
    assert (block.sigma[block.first :] >= SIGMA_FLOOR).all()


def test_instruments_that_are_stepped_together_do_not_touch_each_other() -> None:
    feature_schema = schema("v2-15m")
    walks = [bars_of(feature_schema, seed=seed) for seed in range(5)]
    blocks = [compute(feature_schema, columns(bars)) for bars in walks]
    streams = FeatureStreams(feature_schema, streams=2)
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


def test_the_columns_of_a_tree_begin_with_those_of_a_network_in_every_bit() -> None:
    for text in ("1m", "15m", "1d"):
        tree, bars, block = computed(f"tree-{text}")
        network = compute(schema(f"v2-{text}"), columns(bars))
        first = tree.lookback - 1
        wide = np.ascontiguousarray(block.values[first:, : network.values.shape[1]])
        assert wide.tobytes() == network.values[first:].tobytes()
        assert block.sigma[first:].tobytes() == network.sigma[first:].tobytes()


@pytest.mark.parametrize(("text", "bars"), [("5m", 48), ("15m", 16), ("1h", 4)])
def test_a_window_of_four_hours_is_so_many_bars(text: str, bars: int) -> None:
    feature_schema, walked, block = computed(f"v2-{text}")
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
    assert feature_schema.names.index("yesterday_4h") == schema("v2-1m").names.index("yesterday_4h")


def test_shares_of_variance_mean_what_they_are_called() -> None:
    _, walked, _ = computed("v2-15m")
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
    _, walked, block = computed("tree-15m")
    moves = np.diff(np.log(np.array([bar.close for bar in walked], dtype=float)))
    hours = [moves[len(moves) - 96 * day :][:4] for day in range(1, 6)]
    logs = [float(np.log(np.sqrt(np.mean(hour**2)) / block.sigma[-1])) for hour in hours]
    row = row_of("tree-15m")
    assert row["seasonal_1d_1h"] == pytest.approx(logs[0], abs=1e-5)
    assert row["seasonal_5d_1h"] == pytest.approx(np.mean(logs), abs=1e-5)
    five = float(np.log(np.sqrt(np.mean(moves[-480:] ** 2)) / block.sigma[-1]))
    assert row["har_5d"] == pytest.approx(five, abs=1e-5)


def test_macd_is_two_averages_of_the_last_closes_and_the_average_of_their_difference() -> None:
    _, walked, block = computed("macd-15m")
    closes = np.log(np.array([bar.close for bar in walked[-61:]], dtype=float))[::-1]
    fast, slow, third = (2 / (n + 1) * (1 - 2 / (n + 1)) ** np.arange(61) for n in (12, 26, 9))
    line = fast - slow
    signal = np.convolve(line, third)[:61]
    expected = [
        float((weights * (closes - closes[0])).sum()) / (block.sigma[-1] * 26**0.5)
        for weights in (line, signal, line - signal)
    ]
    row = row_of("macd-15m")
    values = [row["macd"] / 4, row["macd_signal"] / 4, row["macd_histogram"] / 16]
    assert values == pytest.approx(expected, abs=1e-5)
    assert row | row_of("v2-15m") == row


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
    feature_schema, bars, block = computed(f"v2-{text}")
    minutes = np.array([bar.open_time_ms for bar in bars[-MORE:]]) / MINUTE_MS
    for turn in CYCLES:
        period = int(turn[:-1]) * (60 if turn[-1] == "h" else 1)
        angle = 2.0 * np.pi * (minutes % period) / period
        for name, wanted in (("sin", np.sin(angle)), ("cos", np.cos(angle))):
            row = block.values[-MORE:, feature_schema.names.index(f"cycle_{turn}_{name}")]
            np.testing.assert_allclose(row, 0.0 if turn in absent else wanted, atol=1e-6)


def test_a_stream_that_is_warmed_anew_forgets_what_it_held() -> None:
    held, stream = Windows(1, np.add, 4), np.array([0])
    held.warm(0, np.arange(300.0)[None])
    held.warm(0, np.arange(3.0)[None])
    past = held.past(stream, np.arange(6), 0)[:, 0]
    np.testing.assert_equal(past, [2, 1, 0, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("warmed", [0, 1, 2, 100, 239, 240, 241, 479, 480, 700])
def test_a_warmed_stream_equals_one_that_took_the_bars_one_by_one(warmed: int) -> None:
    bars = walk(warmed + 520, seed=7)
    at_once, one_by_one = FeatureStreams(SCHEMA), FeatureStreams(SCHEMA)
    at_once.warm(0, bars[:warmed])
    for bar in bars[:warmed]:
        one_by_one.step([bar])
    for bar in bars[warmed:]:
        rows, wanted = at_once.step([bar]), one_by_one.step([bar])
        assert [part.tobytes() for part in rows] == [part.tobytes() for part in wanted]


def test_a_batch_longer_than_a_block_equals_the_stream_at_its_seams() -> None:
    rng = np.random.default_rng(5)
    count = 40_000
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, count)))
    table = CandleArrays(
        open_time_ms=START_MS + MINUTE_MS * np.arange(count),
        open=close,
        high=close * 1.001,
        low=close * 0.999,
        close=close,
        volume=rng.uniform(0, 10, count),
        interval_ms=MINUTE_MS,
    )
    whole = compute(SCHEMA, table)
    for start in (16_000, 16_383, 33_000):
        part = compute(SCHEMA, cut(table, start, start + 1_200))
        first = part.first
        assert (
            part.values[first:].tobytes() == whole.values[start + first : start + 1_200].tobytes()
        )


def cut(table: CandleArrays, start: int, stop: int) -> CandleArrays:
    span = slice(start, stop)
    return CandleArrays(
        open_time_ms=table.open_time_ms[span],
        open=table.open[span],
        high=table.high[span],
        low=table.low[span],
        close=table.close[span],
        volume=table.volume[span],
        interval_ms=table.interval_ms,
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), decimals=st.integers(3, 5))
def test_the_unit_of_a_price_does_not_matter(seed: int, decimals: int) -> None:
    coarse = compute(SCHEMA, columns(walk(700, seed=seed, decimals=2)))
    fine = compute(SCHEMA, columns(walk(700, seed=seed, decimals=decimals)))
    np.testing.assert_allclose(coarse.values, fine.values, rtol=0, atol=1e-5)


def test_a_dead_market_says_nothing_but_the_time() -> None:
    block = compute(SCHEMA, columns(walk(600, flat=1.0)))
    row = dict(zip(SCHEMA.names, block.values[-1].tolist(), strict=True))
    loud = {name for name, value in row.items() if value != 0.0}
    calendar = {"hour_sin", "hour_cos", "weekday_sin", "weekday_cos"}
    # No volume is log(1 + 0) - log 2 below the usual; no move is the floor of σ.
    loud -= {name for name in loud if name.startswith("cycle_")}
    assert loud - calendar == {
        "interval",
        "volume_3",
        "volume_12",
        "volume_1h",
        "volume_4h",
        "sigma_level",
        "quarticity_24",
    }
    assert block.sigma[-1] == SIGMA_FLOOR


def test_features_mean_what_they_are_called() -> None:
    bars = walk(900, seed=6)
    row = dict(zip(SCHEMA.names, compute(SCHEMA, columns(bars)).values[-1].tolist(), strict=True))
    close = np.array([bar.close for bar in bars], dtype=float)
    moves = np.diff(np.log(close))
    sigma = float(np.sqrt(0.5 * np.mean(moves[-60:] ** 2) + 0.5 * np.mean(moves[-240:] ** 2)))
    assert row["return_12"] == pytest.approx(
        float(np.log(close[-1] / close[-13])) / sigma / 12**0.5, abs=1e-5
    )
    assert row["efficiency_12"] == pytest.approx(
        2 * float(moves[-12:].sum() / np.abs(moves[-12:]).sum()), abs=1e-5
    )
    assert row["sigma_level"] == pytest.approx(float(np.log(sigma * 1000)), abs=1e-5)
    middle, spread = close[-24:].mean(), max(close[-24:].std(), sigma * close[-1])
    assert row["bollinger_24"] == pytest.approx((close[-1] - middle) / (2 * spread), abs=1e-4)
    high = max(bar.high for bar in bars[-240:])
    low = min(bar.low for bar in bars[-240:])
    assert row["channel"] == pytest.approx(2 * (2 * (close[-1] - low) / (high - low) - 1), abs=1e-5)


def test_a_price_of_zero_is_refused() -> None:
    bars = walk(600)
    zero = replace(bars[3], low=0)
    with pytest.raises(DataInvalid, match="zero"):
        compute(SCHEMA, columns([*bars[:3], zero]))
    with pytest.raises(DataInvalid, match="linear:BTCUSDT"):
        FeatureStreams(SCHEMA).step([zero])


def test_a_group_with_a_price_of_zero_is_not_taken_in() -> None:
    mine, theirs = walk(560, seed=8), walk(560, seed=9)
    block = compute(SCHEMA, columns(mine))
    streams = FeatureStreams(SCHEMA, streams=2)
    for bars in zip(mine[:-1], theirs[:-1], strict=True):
        streams.step(bars, [0, 1])
    with pytest.raises(DataInvalid, match="zero"):
        streams.step([mine[-1], replace(theirs[-1], low=0)], [0, 1])
    with pytest.raises(DataInvalid, match="zero"):
        streams.warm(0, [replace(mine[0], low=0)])
    assert streams.step(mine[-1:]).values[0].tobytes() == block.values[-1].tobytes()


def test_no_bars_give_no_rows() -> None:
    block = compute(SCHEMA, columns([]))
    assert block.values.shape == (0, 78)


def test_a_feature_that_is_added_is_found_in_names_width_and_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added: list[FeatureColumn] = []

    @column("sigmas_from", 32, gain=0.5, to=added)
    def from_mean(of: FeatureBasis, window: Window) -> Array:
        return (np.exp(of.distance(window)) - 1.0) / of.sigma

    monkeypatch.setitem(FAMILIES, "wider", [*COLUMNS, *added])
    feature_schema = schema("wider-1m")
    assert feature_schema.names == (*SCHEMA.names, "sigmas_from_32")
    bars = walk(SCHEMA.lookback + 40, seed=4)
    block, feature_block = compute(feature_schema, columns(bars)), compute(SCHEMA, columns(bars))
    assert block.values.shape == (len(bars), 79)
    np.testing.assert_array_equal(block.values[:, :78], feature_block.values)
    stream = FeatureStreams(feature_schema)
    stream.warm(0, bars[:-1])
    [row] = stream.step(bars[-1:]).values
    np.testing.assert_array_equal(row, block.values[-1])
    closes = np.array([bar.close for bar in bars[-32:]], dtype=np.float64)
    expected = 0.5 * (closes[-1] / closes.mean() - 1.0) / block.sigma[-1]
    assert row[-1] == pytest.approx(expected, rel=1e-4)
