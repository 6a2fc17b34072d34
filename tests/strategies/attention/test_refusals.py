"""What attention cannot compute is refused in one sentence; half types that it offers work."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import dense_attention as reference
import numpy as np
import pytest
import torch
from attention_cases import layers_of, rolled
from dense_attention import dense_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracepaper.strategies.attention import (
    GridRead,
    LinearRead,
    Mask,
    MatrixRead,
    Rollout,
    Stream,
    attend,
    capture,
    confidence,
    cross_attend,
    probsparse,
    rollout,
    trained_entropy,
    value_norms,
)
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.linear import attend_linearly, draw_directions, random_features
from tracepaper.strategies.attention.methods import flow, rollout_buckets
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.heads import feature_attribution

TIME, DIM = 20, 8
GENERATOR = torch.Generator().manual_seed(1)
QUERY, KEY, VALUE = torch.randn(3, 2, 3, TIME, DIM, generator=GENERATOR)
SUMS = attend(QUERY, KEY, VALUE, Mask()).logsumexp
LAYER: Final = ([QUERY], [KEY], [SUMS])
SAMPLES = probsparse.sample_keys(TIME, Mask.full(), seed=1)
SPARSE = probsparse.attend_sparsely(QUERY, KEY, VALUE, Mask.full(), SAMPLES)[1]
WEIGHTS = torch.ones(2, 1, TIME)


def layer(query: Tensor = QUERY, key: Tensor = KEY, sums: Tensor = SUMS) -> Layer:
    """Return a causal layer of these tensors."""
    return Layer(query, key, None, sums)


ROWED: Final[dict[str, Callable[[Any], object]]] = {
    "rollout_rows": lambda rows: rolled(layers_of(*LAYER, Mask()), rows),
    "row_entropy": lambda rows: Layer(QUERY, KEY, None, SUMS, Mask()).entropy(rows),
    "confidence": lambda rows: confidence(layers_of(*LAYER, Mask()), rows),
    "attention_flow": lambda rows: flow(layers_of(*LAYER, Mask()), rows).weights["tokens"],
    "attend_rows": lambda rows: probsparse.attend_rows(QUERY, KEY, VALUE, rows),
    "always": lambda rows: probsparse.attend_sparsely(
        QUERY, KEY, VALUE, Mask.full(), SAMPLES, always=rows
    ),
    "sparse": SPARSE.rows,
}


def refused(call: Callable[[], object], words: str) -> None:
    """Expect *call* to be refused in one sentence that holds *words*."""
    with pytest.raises(AttentionInvalid, match=words) as caught:
        call()
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not re.search(r"[.?!] [A-Z]", sentence.replace("Mask.", ""))


@pytest.mark.parametrize("wrong", [[TIME], [-1], [2.5], [True], ["3"], [None]])
@pytest.mark.parametrize("name", ROWED)
def test_a_row_that_is_not_there_is_refused(name: str, wrong: list[Any]) -> None:
    refused(lambda: ROWED[name](wrong), "Row -?[0-9]+ is out of range|Rows must be whole numbers")


@pytest.mark.parametrize("wrong", [2.5, True, "7", None, math.nan, 7.0, torch.tensor(2.5)])
def test_a_mask_of_parts_of_bars_is_refused(wrong: Any) -> None:
    refused(lambda: Mask.window(wrong), "A window's bars must be whole numbers")


BROKEN: Final = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("broken", BROKEN)
def test_scores_of_numbers_that_are_not_finite_are_refused(broken: float) -> None:
    query, key, sums, weights = (x.clone() for x in (QUERY, KEY, SUMS, WEIGHTS))
    query[0, 0, 3, 1] = key[0, 0, 3, 1] = sums[0, 0, 3] = weights[0, 0, 3] = broken
    for queries, other, words in ((query, KEY, "infinite query"), (QUERY, key, "infinite key")):
        refused(partial(Layer.of, queries, other, None), words)
        refused(partial(layer(queries, other).carry, WEIGHTS), words)
        refused(layer(queries, other).entropy, words)
    refused(lambda: layer(sums=sums).carry(WEIGHTS), "attention mass")
    refused(lambda: layer(sums=sums).entropy(), "attention mass")
    refused(lambda: layer().carry(weights), "attention mass")
    refused(lambda: value_norms(query, torch.ones(5, 3 * DIM)), "NaN or infinite number")


def captured(query: Tensor, key: Tensor, value: Tensor, *, scale: Any) -> None:
    """Capture a call of torch's function."""
    with capture():
        torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)


CALLS: Final[dict[str, Callable[..., object]]] = {
    "attend": partial(attend, mask=Mask()),
    "cross_attend": partial(cross_attend, leading_keys=torch.full((TIME,), TIME)),
    "Layer.of": Layer.of,
    "capture": captured,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_scale_is_a_finite_number_above_0(call: str) -> None:
    wrong = (0.0, -0.5, math.nan, math.inf, -math.inf, True)
    for scale in wrong if call == "capture" else (*wrong, "1"):  # torch refuses text itself
        refused(partial(CALLS[call], QUERY, KEY, VALUE, scale=scale), "scale is .* above 0")
    for number in (np.float32(0.5), np.float64(0.5), np.int64(2), 2):
        CALLS[call](QUERY, KEY, VALUE, scale=number)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"softcap": math.inf}, "softcap is inf; it must be a finite number above 0"),
        ({"softcap": "x"}, "softcap is 'x'; it must be a finite number above 0"),
        ({"sinks": torch.tensor([0.0, math.nan, 0.0])}, "A sink is NaN or infinite"),
    ],
)
def test_layers_of_other_numbers_are_refused(numbers: dict[str, Any], words: str) -> None:
    refused(lambda: Layer.of(QUERY, KEY, None, **numbers), words)


WRONG: Final[dict[str, Callable[[Tensor], object]]] = {
    "is torch.complex64; give": lambda x: x.to(torch.complex64),
    "is torch.float8_e4m3fn; give": lambda x: x.to(torch.float8_e4m3fn),
    "is a list; give a torch tensor": Tensor.tolist,
}
PLACES: Final[dict[str, tuple[Tensor, Callable[[Any], object]]]] = {
    "attend": (QUERY, lambda x: attend(x, x, x, Mask())),
    "attend's value": (VALUE, lambda x: attend(QUERY, KEY, x, Mask())),
    "cross_attend": (QUERY, lambda x: cross_attend(x, x, x, torch.full((TIME,), 3))),
    "leading_keys": (WEIGHTS[:, 0], lambda x: cross_attend(QUERY, KEY, VALUE, x)),
    "Layer": (KEY, lambda x: Layer.of(QUERY, x, None)),
    "logsumexp": (SUMS, lambda x: layer(sums=x)),
    "gradient": (VALUE, lambda x: replace(layer(), value=VALUE, gradient=x)),
    "sinks": (torch.zeros(3), lambda x: Layer.of(QUERY, KEY, None, sinks=x)),
    "dense": (QUERY @ KEY.mT, lambda x: Layer.of(QUERY, KEY, None, Mask(dense=x))),
    "from_dense": (QUERY @ KEY.mT, Mask.from_dense),
    "carry": (WEIGHTS, lambda x: layer().carry(x)),
    "start": (WEIGHTS, lambda x: rollout([layer()], {"tokens": x})),
    "matrices": (torch.ones(2, 1, 4, 4), lambda x: rollout([MatrixRead(x)], [3])),
    "value_norms": (VALUE, lambda x: value_norms(x, torch.ones(5, 3 * DIM))),
    "output_weight": (torch.ones(5, 3 * DIM), lambda x: value_norms(VALUE, x)),
    "attend_sparsely": (
        QUERY, lambda x: probsparse.attend_sparsely(x, x, x, Mask.full(), SAMPLES)
    ),
    "samples": (
        1.0 * SAMPLES, lambda x: probsparse.attend_sparsely(QUERY, KEY, VALUE, Mask.full(), x)
    ),
    "attend_rows": (QUERY, lambda x: probsparse.attend_rows(x, x, x, [3])),
    "attend_linearly": (VALUE, lambda x: attend_linearly(QUERY, KEY, x, Mask())),
    "normaliser": (SUMS, lambda x: LinearRead(QUERY, KEY, x)),
    "random_features": (
        QUERY, lambda x: random_features(x, x, draw_directions(3, DIM, 4, seed=1))
    ),
    "stream": (QUERY[:, :, 0], lambda x: Stream(3, batch=2, heads=3, dim=DIM).attend(0, x, x, x)),
    "trained_entropy": (QUERY, lambda x: trained_entropy(x, x, SUMS, Mask())),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_of_another_kind_is_refused_wherever_it_is_given(place: str, words: str) -> None:
    tensor, call = PLACES[place]
    refused(lambda: call(WRONG[words](tensor)), words)


def buckets_of(*layers: Layer, **options: Any) -> object:
    return rollout_buckets(layers, bucket_bars=2, **options)


OTHER = Layer.of(QUERY[:1], KEY[:1], VALUE[:1])
SLOPED = replace(layer(), value=VALUE, gradient=torch.full_like(VALUE, math.nan))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: attend(QUERY[:, :, :0], KEY, VALUE, Mask()), "none of them 0"),
        (lambda: attend(QUERY[:, :0], KEY, VALUE, Mask()), "none of them 0"),
        (lambda: probsparse.attend_rows(QUERY, KEY[..., :0], VALUE, [0]), "none of them 0"),
        (lambda: Rollout(residual_weight="all"), "residual_weight must be between"),  # type: ignore[arg-type]
        (lambda: Mask("window"), "causal is 'window'"),  # type: ignore[arg-type]
        (lambda: GridRead(layer(), (TIME, TIME), 0), "both sizes of the grid"),
        (lambda: attend_linearly(QUERY, KEY, VALUE.int(), Mask()), "value is torch.int32"),
        (
            lambda: Stream(3, batch=2, heads=3, dim=DIM).attend(0, *[QUERY[:, :, 0].double()] * 3),
            "query is torch.float64; give torch.float32",
        ),
        (
            lambda: probsparse.attend_sparsely(QUERY, KEY, VALUE.double(), Mask.full(), SAMPLES),
            "value is torch.float64",
        ),
        (
            lambda: feature_attribution(WEIGHTS[0].mT.double(), WEIGHTS[0].mT, WEIGHTS[0, 0]),
            "gradient is torch.float32",
        ),
        (lambda: rollout([SLOPED], [7], Rollout(fusion="gradient")), "NaN or infinite value"),
        (lambda: Layer.of(QUERY, KEY.double(), None), "key is torch.float64; give torch.float32"),
        (lambda: layer().carry(WEIGHTS[0]), r"weights is \[1, 20\]"),
        (lambda: layer().carry(WEIGHTS[..., 1:]), r"weights is \[2, 1, 19\]"),
        (lambda: Mask.window(0), "at least 1 bar"),
        (lambda: buckets_of(layer(), OTHER), "of one batch and as many heads"),
        (lambda: buckets_of(layer(), backend="x"), "choose auto or tiles"),
        (lambda: Mask(first=-3), "first is -3; give positions of 0 or more"),
        (lambda: Mask(starts=[0, -1]), "starts is -1; give positions of 0 or more"),
        (lambda: rollout_buckets([layer()], bucket_bars=1.5), "must be whole numbers"),  # type: ignore[arg-type]
    ],
)
def test_tensors_that_no_loop_may_read_are_refused(
    call: Callable[[], object], sentence: str
) -> None:
    refused(call, sentence)


def test_what_is_not_asked_for_may_have_any_logsumexp() -> None:
    weights, sums = WEIGHTS.clone(), SUMS.clone()
    weights[..., 3] = 0.0
    sums[:, :, 3] = math.nan
    for given_ in (weights, weights.expand(-1, 3, -1), weights.expand(-1, 12, -1)):
        torch.testing.assert_close(layer(sums=sums).carry(given_), layer().carry(given_))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mask", [Mask.full(), Mask.window(3)])
@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
def test_products_that_overflow_are_refused(
    backend: str, mask: Mask, sign: float, dtype: torch.dtype
) -> None:
    huge = torch.full((1, 1, 10, 8), torch.finfo(dtype).max ** 0.5, dtype=dtype)
    refused(
        lambda: attend(huge, sign * huge, huge, mask, backend=backend),
        "products or sums of it overflow",
    )
    large = huge / 4  # the sum of eight products is half of the largest number
    unit = torch.ones_like(large)
    assert bool(torch.isfinite(attend(large, sign * large, unit, mask).logsumexp).all())


def test_values_whose_sum_overflows_are_refused() -> None:
    huge, small = torch.full((1, 1, 4_000, 2), 3e38), torch.zeros(1, 1, 4_000, 2)
    refused(lambda: attend(small, small, huge, Mask()), "sums of it overflow")
    limits = torch.full((4_000,), 4_000)
    # What divides each weight before it sums does not overflow.
    assert bool(torch.isfinite(cross_attend(small, small, huge, limits).output).all())
    assert bool(torch.isfinite(attend(small, small, huge / 4_000, Mask()).output).all())


HALF: Final = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window", [1, 5, 30])
def test_a_stream_of_half_numbers_rolls_out_at_every_step(window: int, dtype: torch.dtype) -> None:
    stream = Stream(window, layers=2, batch=2, heads=2, dim=DIM, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    layers = torch.randn(2, 3, 2, 2, 40, DIM, generator=generator).to(dtype)
    mask = Mask.window(window)
    for step in range(40):
        for number, layer in enumerate(layers):
            read = stream.attend(number, *(x[:, :, step] for x in layer))
            assert (read.output.dtype, read.logsumexp.dtype) == (dtype, torch.float32)
            query, key, value = (x[:, :, : step + 1].double() for x in layer)
            matrix = reference.attention_matrix(query, key, mask)[:, :, -1:]
            true = (matrix @ value)[:, :, 0]
            # The output is rounded once, and what is rounded is off by float32's own error.
            bound = torch.finfo(dtype).eps / 2 * true.abs() + 1e-5
            assert bool(((read.output.double() - true).abs() <= bound).all())
        bars = stream.rollout().weights["tokens"]
    matrices = [reference.attention_matrix(q.double(), k.double(), mask) for q, k, _ in layers]
    wanted = reference.rollout(matrices, mask)[:, -1:, -bars.shape[-1] :]
    torch.testing.assert_close(bars.double(), wanted, rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(
    dtype=st.sampled_from(HALF), seed=st.integers(0, 99), time=st.sampled_from([1, 20, 300, 700]),
    is_causal=st.booleans(),
)  # fmt: skip
def test_sparse_rows_of_half_numbers_keep_their_mass(
    dtype: torch.dtype, seed: int, time: int, is_causal: bool
) -> None:
    mask = Mask() if is_causal else Mask.full()
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 2, time, DIM, generator=generator).to(dtype)
    output, read = probsparse.attend_sparsely(
        query, key, value, mask, probsparse.sample_keys(time, mask, factor=2, seed=1), factor=2
    )
    assert (output.dtype, read.weights.dtype) == (dtype, torch.float32)
    weights = torch.rand(2, 3, time, generator=generator).to(dtype)
    pushed = read.carry(weights)
    matrix = dense_rows(read).double()
    wanted = (weights.double()[:, None] @ matrix).mean(dim=1)
    # Sums of up to 700 terms in float32.
    bound = time * torch.finfo(torch.float32).eps
    torch.testing.assert_close(pushed.double(), wanted, rtol=bound, atol=bound)
    true: Tensor = matrix @ value.double()
    rounding = torch.finfo(dtype).eps * (true.abs() + 1e-3)
    assert bool(((output.double() - true).abs() <= rounding).all())
