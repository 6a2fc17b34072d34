"""How far rounding may move a number: bounds that hold on any processor.

After Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition 2002, sections 2.2 to 3.1.
A processor chooses in which order a sum is taken and whether a product is fused into it; these
bounds hold in any order, fused or not.
"""

from __future__ import annotations

import math
from typing import Final

import torch

FUNCTION: Final = 8
"""Roundings that an exponential or a logarithm counts for, which err by up to four last digits."""


def gamma(roundings: float, dtype: torch.dtype) -> float:
    """Return γ_n = n·u / (1 - n·u), the largest relative error of so many roundings (lemma 3.1).

    A sum of n products is off by at most γ_n times the sum of their sizes (3.4).
    """
    error = roundings * torch.finfo(dtype).eps / 2
    assert error < 0.5, f"{roundings} roundings to {dtype} leave no digit"
    return error / (1.0 - error)


def entry_roundings(*, dim: int, keys: int, score: float) -> float:
    """Return the roundings of an entry ``exp(score - logsumexp)`` of an attention matrix.

    An exponential makes a relative error of what was an absolute one, so what rounds in a score up
    to *score* counts by that size. The score is one sum over *dim*, scaled, to base 2 and less the
    logsumexp, which was formed of such scores in a sum over *keys*.
    """
    largest = score + math.log(keys)
    return 2 * (dim + 4) * score + 4 * largest + keys + 4 * FUNCTION
