"""Public calls under requires_grad and autocast: exact numbers, and only true gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tracepaper.strategies import attention
from tracepaper.strategies.attention import (
    Layer,
    Mask,
    Read,
    Rollout,
    attend,
    linear,
    reference,
    rollout,
)
from tracepaper.strategies.attention import probsparse as sparse

torch.set_num_threads(1)
TIME, WINDOW = 12, Mask.window(5)
MASKS = (Mask.full(), Mask(), WINDOW)


def inputs(dtype: torch.dtype = torch.float32, *, count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(1, 2, TIME, 8, generator=generator).to(dtype).requires_grad_(True)
        for _ in range(count)
    ]


def explained(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], object]]:
    """Return every public explanation of one layer by its name."""
    full, last = Mask.full(), [TIME - 1]
    total = attend(query, key, value, full).logsumexp
    band = attend(query, key, value, WINDOW).logsumexp
    whole = Layer(
        query, key, value, total, full, output_weight=torch.eye(16).to(value), gradient=value
    )
    window = Layer(query, key, value, band, WINDOW)
    read = Layer(query, key, value, total, full, source="other")
    layer = linear.LinearRead(
        linear.attend_linearly(query.exp(), key.exp(), value, full).layer, full
    )
    drawn = sparse.sample_keys(TIME, full, seed=1)
    rows = sparse.SparseRead(sparse.attend_sparsely(query, key, value, full, drawn).rows)

    def rolled(*reads: Read, method: Rollout = Rollout()) -> list[Tensor]:  # noqa: B008
        return list(rollout(reads, last, method).weights.values())

    return {
        "entropy": window.entropy,
        "entropy of rows": lambda: whole.entropy(last),
        "confidence": lambda: attention.confidence([whole], last),
        "rollout": lambda: rolled(whole, whole),
        "norms": lambda: rolled(whole, method=Rollout(fusion="norm")),
        "gradients": lambda: rolled(whole, method=Rollout(fusion="gradient")),
        "most": lambda: rolled(window, method=Rollout(fusion="max")),
        "flow": lambda: attention.flow([window], last).weights["bars"],
        "buckets": lambda: attention.rollout_buckets([window]).weights["bars"],
        "value_norms": whole.value_norms,
        "logsumexp": lambda: Layer.of(query, key, value).logsumexp,
        "content": lambda: rollout([whole], last).content_share,
        "streams": lambda: rolled(read),
        "linear": lambda: [*rolled(layer), layer.rows(last), layer.confidence(last)],
        "sparse": lambda: [*rolled(rows), rows.rows(last)],
    }  # fmt: skip


def attended(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], object]]:
    """Return every public call that training differentiates."""
    seen = torch.arange(TIME)
    drawn = sparse.sample_keys(TIME, Mask(), seed=1)
    total = attend(query, key, value, WINDOW).logsumexp
    features = (query.exp(), key.exp(), value)
    return {
        "attend": lambda: [attend(query, key, value, mask) for mask in MASKS],
        "chunked": lambda: attend(query, key, value, WINDOW, backend="chunked"),
        "cross_attend": lambda: attention.cross_attend(query, key, value, seen),
        "trained_entropy": lambda: attention.trained_entropy(query, key, total, WINDOW),
        "attend_linearly": lambda: linear.attend_linearly(*features, Mask()).output,
        "random_features": lambda: linear.random_features(query, key, key[0, :, :3].detach()),
        "attend_sparsely": lambda: sparse.attend_sparsely(
            query, key, value, Mask(), drawn
        ).output,
        "attend_rows": lambda: sparse.attend_rows(query, key, value, [1]).output,
    }  # fmt: skip


def leaves(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [leaf for part in result for leaf in leaves(part)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing_and_explanations_carry_no_gradient(dtype: torch.dtype) -> None:
    tensors = inputs(dtype)
    plain = {**explained(*tensors), **attended(*tensors)}
    with torch.autocast("cpu", torch.bfloat16):
        cast = {**explained(*tensors), **attended(*tensors)}
        under = {name: leaves(call()) for name, call in cast.items()}
    explanations = explained(*tensors)
    for name, call in plain.items():
        for found, wanted in zip(under[name], leaves(call()), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0, msg=name)
            assert name not in explanations or not found.requires_grad, name


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind.value)
def test_gradients_are_those_of_stored_matrices_and_second_ones_are_refused(mask: Mask) -> None:
    query, key, value = inputs(torch.float64)
    total = attend(query, key, value, mask).logsumexp
    matrix = reference.attention_matrix(query, key, mask)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    entropy = reference.logsumexp(query, key, mask) - (matrix * scores).sum(dim=-1)
    for own, dense in (
        (attention.trained_entropy(query, key, total, mask), entropy),
        (attend(query, key, value, mask).output, matrix @ value),
    ):
        torch.testing.assert_close(own, dense, rtol=0, atol=1e-12)
        above = torch.rand(own.shape, dtype=own.dtype)
        wanted = torch.autograd.grad(dense, (query, key), above, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            first = torch.autograd.grad(own, (query, key), above, create_graph=True)
        for slope, other in zip(first, wanted, strict=True):
            torch.testing.assert_close(slope, other, rtol=0, atol=1e-11)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), query)
