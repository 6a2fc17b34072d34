"""Export of a network with ``torch.export`` and ONNX, checked to give the outputs it gave here.

An exported network takes windows of one length with their absolute positions, and says of the last
bar what the network says. Its flash kernel is written out in plain
operations for ONNX, whose own translation of it has no logsumexp, so the exported form stores
scores: meant for short windows and other runtimes, not for long contexts.
"""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch.export import ExportedProgram

    from tracepaper.strategies.networks.heads import Outputs

AGREEMENT_MAX: Final = 1e-4
"""The largest difference of an output, relative to its own largest value, that is agreement."""
OPSET: Final = 18


Example = tuple[Tensor, Tensor]
"""Rows [batch, time, features] and their positions int64 [time]: an exported network's inputs."""
INPUTS: Final = ("rows", "positions")
OUTPUT: Final = "output_"
"""What an ONNX output's name begins with, before the head's: values within may be called so."""


class LastBar(nn.Module):
    """A network as another runtime runs it: what it says of the last bar, by name.

    It maps rows [batch, time, features] and positions [time] to tensors [batch, horizon, ...].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Return every head that the network has; returns are in units of ``sigma * sqrt(h)``."""
        said: Outputs = self.network(rows, positions)
        return {name: head[:, -1] for name, head in said._asdict().items() if head is not None}


def export_program(network: nn.Module, example: Example) -> ExportedProgram:
    """Return *network* traced on *example*, its last bar's outputs by name; they must agree.

    Raises ``AttentionInvalid`` where the traced program answers differently on other bars of the
    same shape.
    """
    # A program whose parameters want no gradient runs elsewhere as it stands.
    whole = LastBar(deepcopy(network)).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        program = torch.export.export(whole, example, strict=False)
        probe = _probe(example)
        _agreement_of(whole(*probe), program.module()(*probe), "torch.export")
    return program


def export_torch(network: nn.Module, example: Example, path: Path, *, card: str) -> float:
    """Write *network* to *path* for ``torch.export.load``; return its largest difference from here.

    The *card* lies in the file as ``card.toml``. Raises ``AttentionInvalid`` as ``export_program``.
    """
    torch.export.save(export_program(network, example), path, extra_files={"card.toml": card})
    with torch.no_grad():
        probe = _probe(example)
        found = torch.export.load(path).module()(*probe)
        return _agreement_of(LastBar(network).eval()(*probe), found, "torch.export")


def export_onnx(network: nn.Module, example: Example, path: Path, *, card: str) -> float:
    """Write *network* to *path* as ONNX; return its largest relative difference from here.

    Its inputs are named ``INPUTS``, its outputs ``OUTPUT`` and the head; the *card* is in its
    metadata. Needs the extra ``export`` (onnx and onnxscript); the check runs in onnxruntime where
    that is installed, else in ONNX's own evaluator. Raises ``AttentionInvalid`` where a package is
    missing, an operation has no translation, or outputs differ by more than ``AGREEMENT_MAX``.
    """
    for package in ("onnx", "onnxscript"):
        require(package, "ONNX export")
    program = export_program(network, example)
    with torch.no_grad():
        probe = _probe(example)
        wanted = LastBar(network).eval()(*probe)
        plain = program.run_decompositions({_FLASH: _plain_flash, _SORT: _sort_by_top})
        try:
            written = torch.onnx.export(
                plain, example, dynamo=True, verbose=False, opset_version=OPSET,
                input_names=INPUTS, output_names=[OUTPUT + name for name in wanted],
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise AttentionInvalid(
                f"This network has an operation that ONNX lacks ({reason[:120]}); export it with "
                "--to torch."
            ) from None
        if written is None:
            raise AttentionInvalid("PyTorch's exporter wrote no ONNX program; update torch.")
        written.model.metadata_props["card.toml"] = card
        written.save(str(path))
        return _agreement_of(wanted, run_onnx(path, probe), "ONNX")


def run_onnx(path: Path, example: Example) -> dict[str, Tensor]:
    """Return the outputs of an ONNX file for *example*, by the fastest evaluator installed."""
    given = {name: one.numpy() for name, one in zip(INPUTS, example, strict=True)}
    if find_spec("onnxruntime") is not None:
        session = import_module("onnxruntime").InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        names = [one.name for one in session.get_outputs()]
        found = session.run(None, {one.name: given[one.name] for one in session.get_inputs()})
    else:
        evaluator = import_module("onnx.reference").ReferenceEvaluator(str(path))
        names = evaluator.output_names
        found = evaluator.run(None, {name: given[name] for name in evaluator.input_names})
    return {
        name.removeprefix(OUTPUT): torch.from_numpy(one)
        for name, one in zip(names, found, strict=True)
    }


def _agreement_of(wanted: dict[str, Tensor], found: dict[str, Tensor], route: str) -> float:
    """Return the largest relative difference of outputs by name; raise as ``require_agreement``."""
    return require_agreement(list(wanted.values()), [found.get(name) for name in wanted], route)


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


def _probe(example: Example) -> Example:
    """Return other bars of the same shape, so that a constant folded by mistake is found."""
    generator = torch.Generator().manual_seed(1)
    rows, positions = example
    return torch.randn(rows.shape, generator=generator, dtype=rows.dtype), positions + 777


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
