"""Attention that a module writes out: ``softmax(scores) @ value``, seen by a torch function mode.

The matrix is the left factor of the product, so it has the module's own numbers. Between the two
only what keeps its axes may happen: a type, a view, a mask, dropout that is off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from tracepaper.strategies.attention.checks import AXES, explanation, working_type
from tracepaper.strategies.attention.reads import MatrixRead

_SOFTMAX: Final[Collection[Any]] = (functional.softmax, torch.softmax, Tensor.softmax)
_KEEPS_AXES: Final[Collection[Any]] = (
    functional.dropout,
    torch.dropout,
    Tensor.to,
    Tensor.type,
    Tensor.type_as,
    Tensor.float,
    Tensor.half,
    Tensor.bfloat16,
    Tensor.double,
    Tensor.contiguous,
    Tensor.clone,
    Tensor.view,
    Tensor.reshape,
    Tensor.masked_fill,
    torch.masked_fill,
)
_PRODUCTS: Final[Collection[Any]] = (
    torch.matmul,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
)
_TOLERANCE: Final = {torch.float64: 1e-9, torch.float32: 1e-5}
"""How far from 1 a row's sum may be, by type; half types: 1e-2."""


class HandwrittenProduct(NamedTuple):
    """The probabilities of a module, as it multiplies them, and the shape of their softmax."""

    matrix: Tensor
    shape: torch.Size
    output: Tensor


class HandwrittenAttention(TorchFunctionMode):
    """Call *softmax* after each softmax over a last axis, and *product* after it meets values."""

    def __init__(
        self, softmax: Callable[[], None], product: Callable[[HandwrittenProduct], None]
    ) -> None:
        super().__init__()
        self._softmax, self._product = softmax, product
        self._shapes = WeakTensorKeyDictionary()  # of probabilities: the shape of their softmax

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run *func*, and see whether it makes, hands on or multiplies probabilities."""
        options = kwargs or {}
        result = func(*args, **options)
        if func in _SOFTMAX:
            axis = options.get("dim", args[1] if len(args) > 1 else None)
            if result.ndim >= AXES - 1 and axis in (-1, result.ndim - 1):
                self._shapes[result] = result.shape
                self._softmax()
        elif func in _KEEPS_AXES:
            if args and args[0] in self._shapes and result.numel() == args[0].numel():
                self._shapes[result] = self._shapes[args[0]]
        elif func in _PRODUCTS or (func is torch.einsum and _sums_keys(args)):
            factors = args[1:] if func is torch.einsum else args
            if len(factors) > 1 and factors[0] in self._shapes:
                shape = self._shapes[factors[0]]
                self._product(HandwrittenProduct(factors[0], shape, result))
        return result


def _sums_keys(args: Sequence[Any]) -> bool:
    """Return whether an einsum sums two factors over the last axis of the first alone."""
    if len(args) != len(("equation", "probabilities", "values")) or "->" not in args[0]:
        return False
    inputs, output = args[0].replace(" ", "").split("->")
    first = inputs.partition(",")[0]
    return "." not in first and first[-1] not in output and set(first[:-1]) <= set(output)


@explanation
def matrix_read(product: HandwrittenProduct, tokens: Tensor | None) -> MatrixRead | str:
    """Return the read of *product* in a module over *tokens* [.., token, dim], or why not."""
    if tokens is None or product.shape[-1] not in tokens.shape[:-1]:
        return "its keys are not the tokens of its input"
    if product.shape.numel() != product.matrix.numel():
        return "its heads were changed between softmax and product"
    shape = product.shape
    if len(shape) == AXES - 1:
        if shape[:2] != tokens.shape[:2]:
            return "its softmax has no axis of heads"
        shape = torch.Size((shape[0], 1, *shape[1:]))
    if len(shape) != AXES:
        return "its softmax is not over [batch, head, query, key]"
    matrices = product.matrix.detach().reshape(shape)
    matrices = matrices.to(working_type(matrices))
    error = (matrices.sum(dim=-1) - 1.0).abs()
    if not bool((error <= _TOLERANCE.get(product.matrix.dtype, 1e-2)).all()):
        return "its rows do not sum to 1, as with dropout"
    return MatrixRead(matrices, (matrices > 0).flatten(0, 1).any(dim=0))
