"""Network checks: finite, attending, differentiable, and exported with equal outputs.

The network runs forward over some windows with every module's output checked, its heads are read at
the last row of each, and one backward pass from all outputs measures the gradient of each part.
``GradientFlow`` measures the same while a network is fitted.

An exported network takes windows of one length with their absolute positions, and returns the
network's outputs for the last bar. For ONNX the flash kernel is written out in plain operations,
because ONNX's own translation has no logsumexp. The exported form stores scores, so it is meant for
short windows and other runtimes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from tracepaper.strategies.attention.checks import finite_layers
from tracepaper.strategies.attention.layer import value_norms
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.units import percent

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from tracepaper.strategies.networks.architecture import Network, Outputs

ONE_BAR_ABOVE: Final = 0.98
"""A head whose confidence is above this at every checked row has collapsed onto one bar."""
EVEN_BELOW: Final = 0.001
"""A head that never exceeds the content-free confidence by more than this attends evenly."""
DEAD_BELOW: Final = 0.01
"""A head that moves the residual stream by less than this part of an equal share is dead."""
VANISHED_BELOW: Final = 1e-6
"""A part gets no gradient if it, relative to the weights, is at most this share of the largest."""
EXTREME: Final = 5.0
"""Features are clipped to this size."""


@dataclass(frozen=True)
class HeadCheck:
    """One head over the checked rows; ``share`` is of its layer's output, None if unknown."""

    layer: int
    head: int
    confidence: float  # the mean of 1 - H / ln n
    lowest: float
    highest: float
    share: float | None
    fault: str = ""


@dataclass(frozen=True)
class GradientCheck:
    """The gradient of the mean square of all outputs with respect to one part's parameters."""

    part: str
    parameters: int
    weights: float  # their root mean square
    gradient: float  # the same of their gradient
    fault: str = ""


@dataclass(frozen=True)
class NetworkCheck:
    """The results of a check; ``faults`` are sentences, empty if the network is in order."""

    rows: int
    windows: int
    heads: tuple[HeadCheck, ...]
    gradients: tuple[GradientCheck, ...]
    faults: tuple[str, ...]


def check_network(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> NetworkCheck:
    """Return the condition of *network* over *windows*, each rows [1, time, features] at positions.

    Positions are int64 [time]. The ``grad`` of the parameters does not change.
    """
    network.eval()
    faults = list(_not_finite(network, windows))
    if faults:
        return NetworkCheck(windows[0][0].shape[1], len(windows), (), (), tuple(faults))
    heads = tuple(_heads(network, windows)) if network.has_attention else ()
    gradients = tuple(_gradients(network, *windows[-1]))
    faults += [
        f"Layer {check.layer}, head {check.head}: {check.fault}." for check in heads if check.fault
    ]
    faults += [f"{check.part}: {check.fault}." for check in gradients if check.fault]
    return NetworkCheck(windows[0][0].shape[1], len(windows), heads, gradients, tuple(faults))


def _not_finite(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> Iterator[str]:
    """Yield a sentence for the first NaN or infinity, over the rows or rows at the extremes."""
    rows, positions = windows[-1]
    signs = torch.ones_like(rows)
    signs[:, ::2] = -1.0
    extremes = {
        "rows that are all zero": torch.zeros_like(rows),
        f"rows at {EXTREME:g}": torch.full_like(rows, EXTREME),
        f"rows at {EXTREME:g} and -{EXTREME:g} in turn": EXTREME * signs,
    }
    cases = [("the rows", x, at) for x, at in windows]
    cases += [(name, x, positions) for name, x in extremes.items()]
    for name, x, at in cases:
        try:
            with torch.inference_mode(), finite_layers(network):
                network(x, at)
        except AttentionInvalid as error:
            yield f"Over {name}: {error}"
            return


@torch.no_grad()
def _heads(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> Iterator[HeadCheck]:
    confidence = torch.stack([network.explain(*window).confidence.double() for window in windows])
    shares = _shares(network, windows)
    even = network.content_free() + EVEN_BELOW
    for layer in range(confidence.shape[1]):
        for head in range(confidence.shape[2]):
            values = confidence[:, layer, head]
            share = None if shares is None else float(shares[layer][head])
            low, high = float(values.min()), float(values.max())
            equal = 1.0 / confidence.shape[2]
            fault = ""
            if share is not None and share < DEAD_BELOW * equal:
                fault = f"it is dead, and moves {percent(share)} of its layer's output"
            elif low > ONE_BAR_ABOVE:
                fault = "it has collapsed onto one bar"
            elif high < even:
                fault = "it attends evenly, whatever the rows are"
            yield HeadCheck(layer, head, float(values.mean()), low, high, share, fault)


def _shares(network: Network, windows: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor] | None:
    """Return each head's share of its layer's output by length, [head] a layer; None if unknown."""
    every: list[list[Tensor]] = []
    for window in windows:
        trace = network.trace(*window)
        deciding = {id(read) for read, _ in trace.decided}
        pairs = [
            (read.output_weight, output)
            for read, output in zip(trace.attending, trace.attended, strict=False)
            if id(read) in deciding
        ]
        if not pairs or any(weight is None for weight, _ in pairs):
            return None
        every.append(
            [
                value_norms(output, weight).mean(dim=(0, 2)).double()
                for weight, output in pairs
                if weight is not None
            ]
        )
    lengths = [torch.stack(of).sum(dim=0) for of in zip(*every, strict=True)]
    tiny = torch.finfo(torch.float64).tiny
    return [moved / moved.sum().clamp_min(tiny) for moved in lengths]


def _gradients(network: Network, rows: Tensor, positions: Tensor) -> Iterator[GradientCheck]:
    """Yield the gradient of each part after one backward pass, in the order of the network."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    with torch.enable_grad():
        outputs = [tensor for tensor in network(rows, positions) if tensor is not None]
        loss = torch.stack([tensor[:, -1].float().square().mean() for tensor in outputs]).sum()
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, parameter, slope in zip(names, parameters, slopes, strict=True):
        given = torch.zeros_like(parameter) if slope is None else slope
        parts.setdefault(_part(name), []).append((parameter.detach(), given))
    measured = {
        part: (
            sum(tensor.numel() for tensor, _ in pairs),
            _root_mean_square([tensor for tensor, _ in pairs]),
            _root_mean_square([slope for _, slope in pairs]),
        )
        for part, pairs in parts.items()
    }
    tiny = torch.finfo(torch.float64).tiny
    relative = {part: figures[2] / max(figures[1], tiny) for part, figures in measured.items()}
    largest = max(relative.values())
    for part, (count, weights, gradient) in measured.items():
        fault = ""
        if not gradient < float("inf"):
            fault = "its gradient is not finite"
        elif relative[part] <= VANISHED_BELOW * largest:
            fault = "no gradient reaches it"
        yield GradientCheck(part, count, weights, gradient, fault)


VANISHING_BELOW: Final = 1e-4
"""While fitting: a relative gradient below this share of the largest layer's vanishes."""
EXPLODING_ABOVE: Final = 100.0
"""While fitting: a gradient, before clipping, above this multiple of the weights explodes."""
_HEADS: Final = "heads"
PartNorms = Mapping[str, Sequence[Sequence[float]]]
"""The norms of each part's gradient and weights, one pair per validation."""


class GradientFlow:
    """Gradients of a network's parts while it is fitted, before they are clipped.

    Each step adds the Euclidean norm of each part's gradient, which stays on the device until
    ``medians``. It uses no random numbers and writes no tensor of the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                self._parts.setdefault(_part(name), []).append(parameter)
        self._steps: list[Tensor] = []

    def add(self) -> None:
        """Measure the gradients that the parameters hold; a part without any has 0."""
        self._steps.append(
            torch.stack(
                [_norm(parameters, of_gradient=True) for parameters in self._parts.values()]
            )
        )

    def not_finite(self) -> str:
        """Return the first part whose last gradient is not finite; empty if all are."""
        last = torch.isfinite(self._steps[-1]).tolist()
        return next((part for part, fine in zip(self._parts, last, strict=True) if not fine), "")

    def medians(self) -> dict[str, tuple[float, float]]:
        """Return the median norm of each part's gradient since the last call, and of its weights.

        Of an even number of steps it is the lower of the middle two.
        """
        medians = torch.stack(self._steps).median(dim=0).values.tolist()
        self._steps.clear()
        return {
            part: (gradient, float(_norm(parameters, of_gradient=False)))
            for (part, parameters), gradient in zip(self._parts.items(), medians, strict=True)
        }


@torch.no_grad()
def _norm(parameters: Sequence[nn.Parameter], *, of_gradient: bool) -> Tensor:
    """Return the Euclidean norm of *parameters*, or of their gradients, as float32."""
    tensors = [tensor.grad if of_gradient else tensor for tensor in parameters]
    each = [torch.linalg.vector_norm(tensor.float()) for tensor in tensors if tensor is not None]
    return torch.linalg.vector_norm(torch.stack(each)) if each else torch.zeros(())


def gradient_rows(norms: PartNorms) -> list[dict[str, str | float]]:
    """Return one row per part: its gradient's first, median and last norm, and its relative norm.

    ``relative`` is the median over the validations of gradient ÷ weights.
    """
    return [
        {
            "part": part,
            "first": _digits(each[0][0]),
            "median": _digits(median(gradient for gradient, _ in each)),
            "last": _digits(each[-1][0]),
            "relative": _digits(_relative(each)),
        }
        for part, each in norms.items()
    ]


def gradient_warning(norms: PartNorms) -> str:
    """Return a sentence on the layer whose gradient vanishes or explodes; empty for none.

    Heads are left out: one that has stopped learning gets no gradient.
    """
    judged = {part: _relative(each) for part, each in norms.items() if not part.startswith(_HEADS)}
    if len(judged) < 2:
        return ""
    least, most = min(judged, key=judged.__getitem__), max(judged, key=judged.__getitem__)
    if judged[most] > EXPLODING_ABOVE:
        return (
            f"The gradient explodes in {most}: its norm is {judged[most]:.3g} times that of the "
            "weights; lower training.learning_rate or training.clip."
        )
    if judged[least] < VANISHING_BELOW * judged[most]:
        return (
            f"The gradient vanishes in {least}: relative to the weights it is "
            f"{judged[least] / judged[most]:.1e} of that in {most}; use fewer layers."
        )
    return ""


def _relative(each: Sequence[Sequence[float]]) -> float:
    tiny = torch.finfo(torch.float64).tiny
    return median(gradient / max(weights, tiny) for gradient, weights in each)


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _part(name: str) -> str:
    """Return the part of a network that a parameter belongs to: a module, or a numbered layer."""
    words = name.split(".")
    numbers = [place for place, word in enumerate(words) if word.isdecimal()]
    return ".".join(words[: numbers[0] + 1] if numbers else words[:-1][:2] or words)


def _root_mean_square(tensors: Sequence[Tensor]) -> float:
    count = sum(tensor.numel() for tensor in tensors)
    total = sum(float(tensor.double().square().sum()) for tensor in tensors)
    return math.sqrt(total / count)


AGREEMENT_MAX: Final = 1e-4
"""The largest accepted difference of an output, relative to its largest value."""
OPSET: Final = 18


Example = tuple[Tensor, Tensor]
"""Rows [batch, time, features] and their positions int64 [time]: an exported network's inputs."""
INPUTS: Final = ("rows", "positions")
OUTPUT: Final = "output_"
"""The prefix of ONNX outputs before the head's name, which inner values may have too."""


class LastBar(nn.Module):
    """A network for other runtimes: its outputs for the last bar, by name.

    It maps rows [batch, time, features] and positions [time] to tensors [batch, horizon, ...].
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Return every head that the network has; returns are in units of ``sigma * sqrt(h)``."""
        outputs: Outputs = self.network(rows, positions)
        return {name: head[:, -1] for name, head in outputs._asdict().items() if head is not None}


def export_program(network: nn.Module, example: Example) -> ExportedProgram:
    """Return *network* traced on *example*, with its last bar's outputs by name.

    Raises ``AttentionInvalid`` if the traced program answers differently on other bars of the same
    shape.
    """
    # Other runtimes need parameters without gradients.
    module = LastBar(deepcopy(network)).eval().requires_grad_(requires_grad=False)
    with torch.no_grad():
        program = torch.export.export(module, example, strict=False)
        probe = _probe(example)
        require_agreement(module(*probe), program.module()(*probe), "torch.export")
    return program


def export_torch(network: nn.Module, example: Example, path: Path, *, card: str) -> float:
    """Write *network* to *path* for ``torch.export.load``; return its largest relative difference.

    The file holds the *card* as ``card.toml``. Raises ``AttentionInvalid`` as ``export_program``.
    """
    torch.export.save(export_program(network, example), path, extra_files={"card.toml": card})
    with torch.no_grad():
        probe = _probe(example)
        outputs = torch.export.load(path).module()(*probe)
        return require_agreement(LastBar(network).eval()(*probe), outputs, "torch.export")


def export_onnx(network: nn.Module, example: Example, path: Path, *, card: str) -> float:
    """Write *network* to *path* as ONNX; return its largest relative difference.

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
        assert written is not None
        written.model.metadata_props["card.toml"] = card
        written.save(str(path))
        return require_agreement(wanted, run_onnx(path, probe), "ONNX")


def run_onnx(path: Path, example: Example) -> dict[str, Tensor]:
    """Return the outputs of an ONNX file for *example*, by the fastest evaluator installed."""
    given = {name: value.numpy() for name, value in zip(INPUTS, example, strict=True)}
    if find_spec("onnxruntime") is not None:
        session = import_module("onnxruntime").InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        outputs = session.run(
            None, {value.name: given[value.name] for value in session.get_inputs()}
        )
    else:
        evaluator = import_module("onnx.reference").ReferenceEvaluator(str(path))
        names = evaluator.output_names
        outputs = evaluator.run(None, {name: given[name] for name in evaluator.input_names})
    return {
        name.removeprefix(OUTPUT): torch.from_numpy(value)
        for name, value in zip(names, outputs, strict=True)
    }


def require_agreement(
    wanted: Mapping[str, Tensor], exported: Mapping[str, Tensor], route: str
) -> float:
    """Return the largest relative difference of outputs by name.

    Raises ``AttentionInvalid`` beyond ``AGREEMENT_MAX`` or where their names or shapes differ.
    """
    shapes = [{name: tuple(x.shape) for name, x in each.items()} for each in (wanted, exported)]
    if shapes[0] != shapes[1]:
        raise AttentionInvalid(
            f"The network exported by {route} has other outputs; export it from this version."
        )
    worst = 0.0
    for name, tensor in wanted.items():
        other = exported[name]
        scale = max(float(tensor.detach().abs().max()), torch.finfo(tensor.dtype).tiny)
        difference = float((tensor - other).detach().abs().max()) / scale
        if not difference <= AGREEMENT_MAX:
            raise AttentionInvalid(
                f"The network exported by {route} differs by {difference:.2g} of an output's "
                "scale; do not use the export."
            )
        worst = max(worst, difference)
    return worst


def _probe(example: Example) -> Example:
    """Return other bars of the same shape, to detect an input that was traced as a constant."""
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
    """Return a stable sort as ONNX's TopK of all values, which puts the lower of ties first."""
    if stable is False:
        raise AttentionInvalid("Only a stable sort can be exported; ties would be left open.")
    top = values.topk(values.shape[dim], dim=dim, largest=descending)
    return top.values, top.indices
