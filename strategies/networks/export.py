"""Export of a network with ``torch.export`` and ONNX, checked to give the outputs it gave here.

An exported network takes windows of one length. Its flash kernel is written out in plain
operations for ONNX, whose own translation of it has no logsumexp, so the exported form stores
scores: meant for short windows and other runtimes, not for long contexts.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from tracepaper.strategies.errors import AttentionInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

AGREEMENT_MAX: Final = 1e-4
"""The largest difference of an output, relative to its own largest value, that is agreement."""
OPSET: Final = 18


def export_program(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Return *network* traced on *example* [batch, time, features]; its outputs must agree.

    Raises ``AttentionInvalid`` where the traced program answers differently on other bars of the
    same shape.
    """
    network.eval()
    with torch.no_grad():
        program = torch.export.export(network, (example,), strict=False)
        probe = _probe(example)
        require_agreement(network(probe), program.module()(probe), "torch.export")
    return program


def export_onnx(network: nn.Module, example: Tensor, path: Path) -> float:
    """Write *network* to *path* as ONNX; return its largest relative difference from here.

    Needs the extra ``export`` (onnx and onnxscript); the check runs in onnxruntime where that is
    installed, else in ONNX's own evaluator. Raises ``AttentionInvalid`` where a package is
    missing or the outputs differ by more than ``AGREEMENT_MAX``.
    """
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise AttentionInvalid(
                f"ONNX export needs the package {package}; install tracepaper[export]."
            )
    program = export_program(network, example)
    with torch.no_grad():
        plain = program.run_decompositions({_FLASH: _plain_flash, _SORT: _sort_by_top})
        written = torch.onnx.export(
            plain, (example,), dynamo=True, verbose=False, opset_version=OPSET
        )
        if written is None:
            raise AttentionInvalid("PyTorch's exporter wrote no ONNX program; update torch.")
        written.save(str(path))
        probe = _probe(example)
        return require_agreement(network(probe), run_onnx(path, probe), "ONNX")


def run_onnx(path: Path, example: Tensor) -> list[Tensor]:
    """Return the outputs of an ONNX file for *example*, by the fastest evaluator installed."""
    if find_spec("onnxruntime") is not None:
        session = import_module("onnxruntime").InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        found = session.run(None, {name: example.numpy()})
    else:
        evaluator = import_module("onnx.reference").ReferenceEvaluator(str(path))
        found = evaluator.run(None, {evaluator.input_names[0]: example.numpy()})
    return [torch.from_numpy(output) for output in found]


def require_agreement(
    wanted: Sequence[Tensor | None], found: Sequence[Tensor | None], route: str
) -> float:
    """Return the largest relative difference of two tuples of outputs; None entries are left out.

    Raises ``AttentionInvalid`` beyond ``AGREEMENT_MAX`` or where their number or shapes differ.
    """
    here = [output for output in wanted if output is not None]
    there = [output for output in found if output is not None]
    if [tuple(one.shape) for one in here] != [tuple(other.shape) for other in there]:
        raise AttentionInvalid(
            f"The network exported by {route} has other outputs; export it from this version."
        )
    worst = 0.0
    for one, other in zip(here, there, strict=True):
        scale = max(float(one.detach().abs().max()), torch.finfo(one.dtype).tiny)
        difference = float((one - other).detach().abs().max()) / scale
        if not difference <= AGREEMENT_MAX:
            raise AttentionInvalid(
                f"The network exported by {route} differs by {difference:.2g} of an output's "
                "scale; do not use the export."
            )
        worst = max(worst, difference)
    return worst


def _probe(example: Tensor) -> Tensor:
    """Return other bars of the same shape, so that a constant folded by mistake is found."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(example.shape, generator=generator, dtype=example.dtype)


_FLASH: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001
_SORT: Final = torch.ops.aten.sort.stable


def _plain_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - the operator's own signature
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return output and logsumexp of the flash operator in plain operations."""
    if dropout_p or attn_mask is not None:
        raise AttentionInvalid("Only attention without dropout and mask tensor can be exported.")
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-1, -2)
    if is_causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    top = scores.amax(dim=-1, keepdim=True)
    weights = (scores - top).exp()
    total = weights.sum(dim=-1, keepdim=True)
    return (weights / total) @ value, (top + total.log())[..., 0]


def _sort_by_top(
    values: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Return a stable sort as ONNX's TopK of everything, which gives ties to the lower index."""
    if stable is False:
        raise AttentionInvalid("Only a stable sort can be exported; ties would be left open.")
    found = values.topk(values.shape[dim], dim=dim, largest=descending)
    return found.values, found.indices
