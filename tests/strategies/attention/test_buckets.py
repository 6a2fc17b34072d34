"""Every row's bucketed rollout against stored matrices."""

from __future__ import annotations

import dense_attention as reference
import pytest
import torch
from attention_cases import Case, bucketed, case, cases
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import gamma
from torch import Tensor

from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid

torch.set_num_threads(1)


def stored(sample: Case, bucket_bars: int) -> Tensor:
    """Sum the columns of the stored rollout."""
    whole = reference.rollout(sample.matrices, sample.mask)
    bucket = torch.arange(whole.shape[-1]) // bucket_bars
    return whole @ torch.nn.functional.one_hot(bucket).double()


@settings(max_examples=50, deadline=None)
@given(cases(longest=90), st.integers(1, 20))
def test_buckets_equal_the_stored_matrices(sample: Case, bucket_bars: int) -> None:
    result = bucketed(sample.layers, bucket_bars=bucket_bars)
    sample.hold(result.weights, stored(sample, bucket_bars))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(cases(longest=90), st.integers(1, 20), st.integers(0, 2))
def test_ages_are_the_buckets_counted_from_the_row(
    sample: Case, bucket_bars: int, start_layer: int
) -> None:
    assume(sample.mask.kind is not MaskKind.FULL and start_layer < len(sample.queries))
    time = sample.queries[0].shape[2]
    chosen = Rollout(start_layer=start_layer)
    ages, whole = (
        bucketed(sample.layers, chosen, bucket_bars=bucket_bars, by_age=by_age).weights
        for by_age in (True, False)
    )
    bucket = torch.arange(time) // bucket_bars
    wanted = torch.zeros_like(ages)
    for row in range(time):
        for age in range(min(ages.shape[2], int(bucket[row]) + 1)):
            wanted[:, row, age] = whole[:, row, int(bucket[row]) - age]
    # The same sums over the same tiles, column by column.
    torch.testing.assert_close(ages, wanted, rtol=2 * sample.rounding(), atol=0)
    rounding = gamma(2 * ages.shape[2], torch.float64)
    torch.testing.assert_close(ages.sum(-1), torch.ones_like(ages[..., 0]), rtol=rounding, atol=0)


def test_ages_of_a_full_mask_and_other_fusions_are_refused() -> None:
    sample = case(Mask.full())
    with pytest.raises(AttentionInvalid, match="looks both ways"):
        bucketed(sample.layers, by_age=True)
    with pytest.raises(AttentionInvalid, match="by the heads' mean without discarding"):
        bucketed(sample.layers, Rollout(fusion="max"))


def test_a_wrong_logsumexp_is_refused() -> None:
    sample = case(Mask())
    sample.sums[1] *= 1.4427
    with pytest.raises(AttentionInvalid, match="did not keep its attention mass"):
        bucketed(sample.layers)
