"""The launcher of the Triton kernels of a rollout; imports triton only where it can run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch

from .backends import AMPERE, generation_of
from .errors import AttentionInvalid
from .masks import MaskKind
from .tiles import LOG2_E

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .tiles import Operand

TILE: Final = 64
"""Queries and keys of a program's tile; with a head of 64 it fits every GPU since Turing."""
DIM_MAX: Final = 256
ROWS: Final = 16
"""Rows of weights that share a program's exponentials: the least that a matrix unit takes."""
SCAN: Final = 1_024
"""Weights that a program reads at once, to skip queries without any."""
_DIM_MIN: Final = 16  # the smallest side that a matrix unit takes
_TURING: Final = (7, 5)
_GRID_MOST: Final = (1 << 31) - 1
PRECISION: Final = "ieee"
"""The precision of float32 products; "tf32x3" would use the matrix units, but is not measured."""
_STAGES: Final = (3, 1)
"""Tiles of queries to prefetch: the second number where shared memory is too small."""


@cache
def is_available() -> bool:
    """Return whether triton is installed."""
    return find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Return whether the kernel runs on *device*: CUDA, or any through Triton's interpreter."""
    if not is_available():
        return False
    return device.type == "cuda" or bool(import_module("triton").knobs.runtime.interpret)


def takes(layer: Operand) -> bool:
    """Return whether the kernel takes tensors of this type and head dim on their device.

    Triton compiles for Turing and later, and multiplies bfloat16 from Ampere on. The kernel needs a
    kernel mask and as many queries as keys.
    """
    query = layer.query
    if layer.mask.kind is MaskKind.OTHER:
        return False
    if layer.kind == torch.float64 or query.shape[3] > DIM_MAX or layer.queries != layer.keys:
        return False
    if not is_available():
        return False
    least = AMPERE if query.dtype == torch.bfloat16 else _TURING
    return query.device.type != "cuda" or generation_of(query.device) >= least


def push_rows(layer: Operand, weights: Tensor, *, precision: str = PRECISION) -> Tensor:
    """Return each head's ``wᵀA`` [batch, head, row, time] in float32; *weights* [batch, row, time].

    *precision* is that of float32 products, by Triton's name. Raises ``AttentionInvalid`` for
    float64, heads of more than ``DIM_MAX``, and if the kernel does not fit the device.
    """
    batch, rows, time = weights.shape
    rows_a_program = 1 if rows == 1 else ROWS
    row_blocks, key_blocks = -(-rows // rows_a_program), -(-time // TILE)
    result = torch.empty(batch, layer.heads, rows, time, dtype=torch.float32, device=weights.device)
    shares = weights.float().contiguous()
    sizes = (rows, layer.heads, layer.group, _window(layer), key_blocks, row_blocks)
    programs = key_blocks * row_blocks * batch * layer.heads
    options = {"ROWS": rows_a_program, "SCAN": SCAN, "PRECISION": precision}
    _run(_kernels(layer).push_kernel, programs, layer, (shares, result), sizes, options)
    return result


def row_masses(layer: Operand, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """Return each row's mass and entropy in nats, [batch, head, row] each; None is all rows.

    Raises ``AttentionInvalid`` as ``push_rows`` does.
    """
    place = _places(range(layer.queries) if rows is None else tuple(rows), layer.device)
    pairs, count = layer.batch * layer.heads, len(place)
    result = torch.empty(
        2, layer.batch, layer.heads, count, dtype=torch.float32, device=layer.device
    )
    side = TILE if count > ROWS else ROWS
    row_blocks = -(-count // side)
    sizes = (count, layer.group, _window(layer), pairs, row_blocks)
    options = {"QUERIES": side, "PRECISION": PRECISION}
    _run(_kernels(layer).mass_kernel, row_blocks * pairs, layer, (place, result), sizes, options)
    mass, entropy = result.unbind()
    return mass, entropy


def _window(layer: Operand) -> int:
    """Return how many bars a query sees; all of them where there is no window."""
    return layer.mask.window_bars if layer.mask.kind is MaskKind.WINDOW else layer.keys


@lru_cache(maxsize=64)
def _places(rows: Sequence[int], device: torch.device) -> Tensor:
    """Return *rows* on the device; cached, because every layer needs them."""
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _kernels(layer: Operand) -> Any:  # noqa: ANN401 - Triton's functions have no type
    """Return the module of the kernels; raise ``AttentionInvalid`` if they cannot take *layer*."""
    if not takes(layer):
        raise AttentionInvalid(
            "The triton rollout kernel takes square layers of float32 and half types, heads of at "
            f"most {DIM_MAX}, and bfloat16 from Ampere on; choose the backend tiles."
        )
    return import_module(".triton_kernel", __package__)


def _run(
    kernel: Any,  # noqa: ANN401 - as above
    programs: int,
    layer: Operand,
    tensors: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    options: dict[str, object],
) -> None:
    """Run *kernel* over *layer* with this number of *programs*."""
    if programs > _GRID_MOST:
        raise AttentionInvalid(
            f"These rows of {layer.keys} bars need {programs:,} programs, and a grid takes "
            f"{_GRID_MOST:,}; explain fewer rows at once."
        )
    arguments = (
        layer.query.contiguous(),
        layer.key.contiguous(),
        layer.minus.float().contiguous(),
        *tensors,
        layer.scale * LOG2_E if layer.softcap is None else layer.scale / layer.softcap,
        0.0 if layer.softcap is None else layer.softcap * LOG2_E,
        layer.keys,
        *sizes,
    )
    common = {
        "CAUSAL": layer.mask.kind is not MaskKind.FULL,
        "CAPPED": layer.softcap is not None,
        "DIM": layer.dim,
        "DIM_PADDED": max(_DIM_MIN, 1 << (layer.dim - 1).bit_length()),
        "QUERIES": TILE,
        "KEYS": TILE,
        "WIDEN": layer.device.type != "cuda",
        # Its default changed between versions of Triton, and the last bits with it.
        "enable_fp_fusion": True,
    }
    launch(kernel[(programs,)], arguments, common | options)


def launch(
    kernel: Callable[..., object], arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    """Run *kernel*, prefetching as many tiles as the device's shared memory holds."""
    exhausted = import_module("triton.runtime.errors").OutOfResources
    lacking = ""
    for stages in _STAGES:
        try:
            kernel(*arguments, **options, num_stages=stages)
        except exhausted as error:
            lacking = str(error).rstrip(".")
        else:
            return
    raise AttentionInvalid(
        f"The triton rollout kernel does not fit this device ({lacking}); choose the backend tiles."
    )
