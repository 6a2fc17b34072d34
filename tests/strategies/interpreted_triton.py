"""Run the Triton rollout kernel in Triton's interpreter and print its errors as JSON.

A process of its own, because the interpreter must be asked for before triton is imported.
"""

from __future__ import annotations

import json
import sys

import torch

from tracepaper.strategies.attention import reference
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.rollout import rollout_rows


def main() -> None:
    """Compare the kernel with stored matrices over shapes and masks; twice, for its bits."""
    generator = torch.Generator().manual_seed(5)
    cases = []
    for batch, heads, time, dim in ((1, 2, 150, 16), (2, 1, 64, 5), (1, 1, 1, 8)):
        shape = (batch, heads, time, dim)
        queries = [torch.randn(shape, generator=generator) for _ in range(2)]
        keys = [torch.randn(shape, generator=generator) for _ in range(2)]
        for mask in (Mask.full(), Mask.causal(), Mask.window(70)):
            pairs = list(zip(queries, keys, strict=True))
            sums = [reference.logsumexp(query, key, mask) for query, key in pairs]
            matrices = [
                reference.attention_matrix(query.double(), key.double(), mask)
                for query, key in pairs
            ]
            rows = sorted({0, time - 1})
            first, again = (
                rollout_rows(queries, keys, sums, rows, mask, backend="triton").weights
                for _ in range(2)
            )
            wanted = reference.rollout(matrices, mask)[:, rows]
            cases.append(
                {
                    "case": [batch, heads, time, dim, mask.kind.value],
                    "error": float((first - wanted).abs().amax()),
                    "repeats": bool(torch.equal(first, again)),
                }
            )
    json.dump(cases, sys.stdout)


if __name__ == "__main__":
    main()
