"""Features look only back, remember exactly their lookback, and stay finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray
from walks import MINUTE_MS, START_MS, walk

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rolling import Windows
from tracepaper.strategies.features.rows import (
    SETS,
    Columns,
    FeatureStreams,
    columns,
    compute,
    schema,
)
from tracepaper.strategies.features.v1 import SIGMA_FLOOR, V1, FeatureInputs, FeatureSet

SCHEMA = schema("v1")


def test_a_stream_that_is_warmed_anew_forgets_what_it_held() -> None:
    held, stream = Windows(1, np.add, 4), np.array([0])
    held.warm(0, np.arange(300.0)[None])
    held.warm(0, np.arange(3.0)[None])
    past = held.past(stream, np.arange(6), 0)[:, 0]
    np.testing.assert_equal(past, [2, 1, 0, np.nan, np.nan, np.nan])


def test_the_schema_has_thirty_names_and_a_short_lookback() -> None:
    assert SCHEMA.schema_id == "v1"
    assert len(set(SCHEMA.names)) == len(SCHEMA.names) == 30
    assert SCHEMA.lookback < 600


def test_a_feature_that_is_added_is_found_in_names_width_and_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wider = FeatureSet("wider")
    wider.features.extend(V1.features)

    @wider.add("sigmas_from_32", gain=0.5)
    def from_mean(of: FeatureInputs) -> NDArray[np.float64]:
        return (of.close / of.mean_close(32) - 1.0) / of.sigma

    monkeypatch.setitem(SETS, "wider", wider)
    found = schema("wider")
    assert found.names == (*SCHEMA.names, "sigmas_from_32")
    bars = walk(SCHEMA.lookback + 40, seed=4)
    block, known = compute(found, columns(bars)), compute(SCHEMA, columns(bars))
    assert block.values.shape == (len(bars), 31)
    np.testing.assert_array_equal(block.values[:, :30], known.values)
    stream = FeatureStreams(found)
    stream.warm(0, bars[:-1])
    [row] = stream.step(bars[-1:]).values
    np.testing.assert_array_equal(row, block.values[-1])
    closes = np.array([bar.close for bar in bars[-32:]], dtype=np.float64)
    expected = 0.5 * (closes[-1] / closes.mean() - 1.0) / block.sigma[-1]
    assert row[-1] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_schema_is_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match=r"'v7'.*v1"):
        schema("v7")


def test_the_stream_equals_the_batch_in_every_bit() -> None:
    bars = walk(SCHEMA.lookback + 700, seed=1)
    block = compute(SCHEMA, columns(bars))
    stream = FeatureStreams(SCHEMA)
    for i, bar in enumerate(bars):
        [row], [sigma], [known] = stream.step([bar])
        assert known == min(i + 1, SCHEMA.lookback)
        if known < SCHEMA.lookback:
            assert np.isnan(row).all()
            assert np.isnan(sigma)
        else:
            assert row.dtype == np.float32
            assert row.tobytes() == block.values[i].tobytes(), i
            assert sigma == block.sigma[i]


def test_a_row_from_exactly_its_lookback_equals_the_endless_one() -> None:
    bars = walk(2_000, seed=2)
    endless = compute(SCHEMA, columns(bars))
    for last in (SCHEMA.lookback - 1, 800, 1_999):
        window = bars[last + 1 - SCHEMA.lookback : last + 1]
        short = compute(SCHEMA, columns(window))
        assert short.first == SCHEMA.lookback - 1
        assert short.values[-1].tobytes() == endless.values[last].tobytes()
        assert short.sigma[-1] == endless.sigma[last]


def test_one_bar_less_than_the_lookback_is_not_enough() -> None:
    block = compute(SCHEMA, columns(walk(SCHEMA.lookback - 1)))
    assert np.isnan(block.values).all()
    assert np.isnan(block.sigma).all()


def test_every_bar_of_the_lookback_is_needed() -> None:
    bars = walk(SCHEMA.lookback, seed=3)
    oldest = bars[0]
    row = compute(SCHEMA, columns(bars)).values[-1]
    shocked = replace(oldest, close=oldest.low // 2)
    assert not np.array_equal(row, compute(SCHEMA, columns([shocked, *bars[1:]])).values[-1])


def test_a_warmed_stream_continues_as_an_endless_one() -> None:
    bars = walk(1_300, seed=4)
    block = compute(SCHEMA, columns(bars))
    stream = FeatureStreams(SCHEMA)
    stream.step([bars[7]])  # forgotten by warm
    stream.warm(0, bars[:900])
    for i in range(900, 1_300):
        [row], [sigma], _ = stream.step([bars[i]])
        assert row.tobytes() == block.values[i].tobytes()
        assert sigma == block.sigma[i]


@pytest.mark.parametrize("warmed", [0, 1, 2, 100, 255, 256, 257, 511, 512, 700])
def test_a_warmed_stream_equals_one_that_took_the_bars_one_by_one(warmed: int) -> None:
    bars = walk(warmed + 520, seed=7)
    at_once, one_by_one = FeatureStreams(SCHEMA), FeatureStreams(SCHEMA)
    at_once.warm(0, bars[:warmed])
    for bar in bars[:warmed]:
        one_by_one.step([bar])
    for bar in bars[warmed:]:
        found, wanted = at_once.step([bar]), one_by_one.step([bar])
        assert [part.tobytes() for part in found] == [part.tobytes() for part in wanted]


def test_instruments_that_are_stepped_together_do_not_touch_each_other() -> None:
    """Whatever the group, its order and the age of its streams: every bit is the batch's."""
    walks = [walk(1_100, seed=seed, decimals=2 + seed % 3) for seed in range(11)]
    blocks = [compute(SCHEMA, columns(bars)) for bars in walks]
    streams = FeatureStreams(SCHEMA, streams=4)
    streams.extend(len(walks) - 4)
    ages = [300 + 41 * place for place in range(len(walks))]
    for place, age in enumerate(ages):
        streams.warm(place, walks[place][:age])
    rng = np.random.default_rng(3)
    for _ in range(300):
        group = rng.permutation(len(walks))[: rng.integers(1, len(walks) + 1)].tolist()
        rows = streams.step([walks[place][ages[place]] for place in group], group)
        for index, place in enumerate(group):
            block, at = blocks[place], ages[place]
            assert rows.complete(SCHEMA)[index] == (at >= block.first)
            assert rows.values[index].tobytes() == block.values[at].tobytes()
            assert rows.sigma[index].tobytes() == block.sigma[at].tobytes()
            ages[place] += 1


def test_a_batch_longer_than_a_block_equals_the_stream_at_its_seams() -> None:
    rng = np.random.default_rng(5)
    count = 40_000
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, count)))
    table = Columns(
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


def cut(table: Columns, start: int, stop: int) -> Columns:
    span = slice(start, stop)
    return Columns(
        open_time_ms=table.open_time_ms[span],
        open=table.open[span],
        high=table.high[span],
        low=table.low[span],
        close=table.close[span],
        volume=table.volume[span],
        interval_ms=table.interval_ms,
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), changed=st.integers(520, 899))
def test_a_corrupted_future_moves_no_past_row(seed: int, changed: int) -> None:
    bars = walk(900, seed=11)
    corrupted = bars[:changed] + walk(900, seed=seed, decimals=4, flat=0.5)[changed:]
    before = compute(SCHEMA, columns(bars))
    after = compute(SCHEMA, columns(corrupted))
    assert before.values[:changed].tobytes() == after.values[:changed].tobytes()
    assert before.sigma[:changed].tobytes() == after.sigma[:changed].tobytes()
    assert not np.array_equal(before.values[changed], after.values[changed])


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    flat=st.sampled_from([0.0, 0.4, 0.95, 0.995, 1.0]),
)
def test_rows_are_finite_and_clipped_however_flat_the_market(seed: int, flat: float) -> None:
    block = compute(SCHEMA, columns(walk(1_000, seed=seed, flat=flat)))
    rows = block.values[block.first :]
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 5.0
    assert (block.sigma[block.first :] >= SIGMA_FLOOR).all()


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
    assert loud - calendar == {"volume_16", "volume_64", "sigma_level"}
    assert block.sigma[-1] == SIGMA_FLOOR


def test_features_mean_what_they_are_called() -> None:
    bars = walk(900, seed=6)
    row = dict(zip(SCHEMA.names, compute(SCHEMA, columns(bars)).values[-1].tolist(), strict=True))
    close = np.array([bar.close for bar in bars], dtype=float)
    moves = np.diff(np.log(close))
    sigma = float(np.sqrt(0.5 * np.mean(moves[-64:] ** 2) + 0.5 * np.mean(moves[-256:] ** 2)))
    assert row["return_12"] == pytest.approx(
        float(np.log(close[-1] / close[-13])) / sigma / 12**0.5, abs=1e-5
    )
    assert row["realised_8"] == pytest.approx(
        2 * float(np.log(np.sqrt(np.mean(moves[-8:] ** 2)) / sigma)), abs=1e-5
    )
    assert row["rsi_16"] == pytest.approx(
        4 * float(moves[-16:].sum() / np.abs(moves[-16:]).sum()), abs=1e-5
    )
    assert row["sigma_level"] == pytest.approx(float(np.log(sigma * 1000)), abs=1e-5)
    middle, spread = close[-32:].mean(), close[-32:].std()
    assert row["bollinger_32"] == pytest.approx((close[-1] - middle) / (2 * spread), abs=1e-4)
    high = max(bar.high for bar in bars[-128:])
    low = min(bar.low for bar in bars[-128:])
    assert row["channel_128"] == pytest.approx(
        2 * (2 * (close[-1] - low) / (high - low) - 1), abs=1e-5
    )


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
    assert block.values.shape == (0, 30)
