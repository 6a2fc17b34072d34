"""Run the Triton rollout kernel in Triton's interpreter and print its errors as JSON.

A process of its own, because the interpreter must be asked for before triton is imported.
"""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

import dense_attention as reference
import torch
from attention_cases import LAYOUTS, layers_of, rolled

from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask


class Setting(NamedTuple):
    """One comparison: the shape of the layers, their type, how many rows, and what is pruned."""

    batch: int
    heads: int
    time: int
    dim: int
    rows: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"


SETTINGS = (
    Setting(1, 2, 150, 16, (0, 149)),
    Setting(2, 1, 64, 5, (0, 63)),
    Setting(1, 1, 1, 8, (0,)),
    Setting(1, 1, 150, 18, tuple(range(0, 150, 9))),  # rows of several blocks, one of them uneven
    Setting(2, 2, 100, 16, (99,), torch.bfloat16),
    Setting(1, 2, 100, 8, tuple(range(60, 100)), torch.bfloat16),
    *(Setting(2, 2, 70, 6, (2, 69), layout=layout) for layout in LAYOUTS),
)


def compare(setting: Setting, mask: Mask, generator: torch.Generator) -> dict[str, object]:
    """Return the largest error against stored matrices, and whether the bits repeat."""
    shape = (setting.batch, setting.heads, setting.time, setting.dim)
    parts = [torch.randn(shape, generator=generator).to(setting.dtype) for _ in range(4)]
    queries, keys = ([LAYOUTS[setting.layout](x) for x in part] for part in (parts[:2], parts[2:]))
    pairs = list(zip(queries, keys, strict=True))
    wide = [(query.contiguous().double(), key.contiguous().double()) for query, key in pairs]
    sums = [reference.logsumexp(query, key, mask).float() for query, key in wide]
    matrices = [reference.attention_matrix(query, key, mask) for query, key in wide]
    layers = layers_of(queries, keys, sums, mask)
    first, again = (rolled(layers, setting.rows, backend="triton") for _ in range(2))
    wanted = reference.rollout(matrices, mask)[:, list(setting.rows)]
    error = float((first.weights - wanted).abs().amax())
    if setting.layout == "contiguous":
        dense = torch.special.entr(matrices[0]).sum(-1)
        chosen = list(setting.rows)
        for rows, wanted in ((None, dense), (chosen, dense[:, :, chosen])):
            entropy = layers[0].entropy(rows, backend="triton")
            error = max(error, float((entropy - wanted).abs().amax()) / 20)  # nats, up to ln 150
    return {
        "case": [*shape, len(setting.rows), str(setting.dtype), mask.kind.value],
        "error": error,
        "repeats": bool(torch.equal(first.weights, again.weights)),
    }


def compare_shared(mask: Mask, generator: torch.Generator) -> dict[str, object]:
    """Return the same of four heads that share two key heads, their scores capped, beside tiles."""
    query, key = torch.randn(2, 2, 4, 100, 8, generator=generator)
    layers = [Layer.of(query, key[:, :2], None, mask, softcap=2.0)]
    first, again, wanted = (
        rolled(layers, [3, 99], backend=backend).weights
        for backend in ("triton", "triton", "tiles")
    )
    error = float((first - wanted).abs().amax())
    mine, tiled = (layers[0].entropy(backend=backend) for backend in ("triton", "tiles"))
    error = max(error, float((mine - tiled).abs().amax()) / 20)
    return {"case": mask.kind.value, "error": error, "repeats": bool(torch.equal(first, again))}


def main() -> None:
    """Compare the kernel with stored matrices over shapes, types and masks; twice, for its bits."""
    generator = torch.Generator().manual_seed(5)
    masks = (Mask.full(), Mask(), Mask.window(70))
    cases = [compare(setting, mask, generator) for setting in SETTINGS for mask in masks]
    cases += [compare_shared(mask, generator) for mask in masks]
    json.dump(cases, sys.stdout)


if __name__ == "__main__":
    main()
