"""Attention that a module writes out, ``softmax(scores) @ value``, by the matrix of its product.

The matrix is the left factor of the product, so it has the module's own numbers. Between softmax
and product only what keeps its axes may happen: a type, a view, a mask, dropout that is off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import AXES, explanation, working_type
from .flows import INPUTS, ROW_SUM, HandwrittenProduct
from .reads import MatrixRead


@explanation
def matrix_read(product: HandwrittenProduct, tokens: Tensor | None) -> MatrixRead | str:
    """Return the read of *product* in a module over *tokens* [.., token, dim], or why not."""
    shape = product.shape
    if len(shape) == AXES - 1 and tokens is not None and shape[:2] == tokens.shape[:2]:
        shape = torch.Size((shape[0], 1, *shape[1:]))
    why_not = _why_not(product, shape, tokens)
    if why_not is not None:
        return why_not
    matrices = product.matrix.detach().reshape(shape)
    # A copy: the module may go on to use its matrix for something else.
    matrices = matrices.to(working_type(matrices), copy=True)
    error = (matrices.sum(dim=-1) - 1.0).abs()
    if not bool((error <= ROW_SUM.get(product.matrix.dtype, 1e-2)).all()):
        return "its rows do not sum to 1, as with dropout"
    return MatrixRead(matrices, (matrices > 0).flatten(0, 1).any(dim=0))


def _why_not(product: HandwrittenProduct, shape: torch.Size, tokens: Tensor | None) -> str | None:
    """Return why *product*, a softmax of *shape*, is no attention to *tokens*; None if it is."""
    if product.scores is None:
        return "its softmax is not over a product of tokens"
    if product.scores.key >> INPUTS != product.values >> INPUTS:
        return "its values are not those of its keys"
    if tokens is None or shape[-1] not in tokens.shape[:-1]:
        return "its keys are not the tokens of its input; if it has a cache, give use_cache=False"
    if shape.numel() != product.matrix.numel():
        return "its heads were changed between softmax and product"
    if len(shape) == AXES - 1:
        return "its softmax has no axis of heads"
    return None if len(shape) == AXES else "its softmax is not over [batch, head, query, key]"
