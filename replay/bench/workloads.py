"""Seeded inputs of the benches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tracepaper.strategies.attention import compiled, reference
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask, MaskKind
from tracepaper.strategies.attention.memory import Shape, dense_bytes, require_memory
from tracepaper.strategies.attention.methods import (
    PLAIN,
    Rollout,
    confidence,
    rollout,
    rollout_buckets,
    rollout_by_age,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    Advance,
    Attended,
    StreamingNetwork,
    StreamSpan,
    StreamState,
    stream_backends,
)
from tracepaper.strategies.types.decisions import BLOCK_BARS

MANY_ROWS: Final = 256
"""Decisions that share one backward pass in the bench."""
_SEED: Final = 20_240_501
_LAYERS: Final = 2
_CPU_KERNEL: Final = "_scaled_dot_product_flash_attention_for_cpu"

Route = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Setting:
    """The attention that is measured: 4 layers of 4 heads of 32 unless told otherwise."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    device: str = "cpu"
    dtype: str = "float32"


class Inputs(NamedTuple):
    """One tensor a layer, [1, head, time, dim]."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]


class Dense(NamedTuple):
    """What the route of stored matrices gives: every layer's output, and the last row."""

    outputs: list[Tensor]
    weights: Tensor


def draw(setting: Setting, bars: int) -> Inputs:
    """Return seeded normal queries, keys and values of *bars* bars."""
    generator = torch.Generator().manual_seed(_SEED)
    shape = (1, setting.heads, bars, setting.head_dim)
    kind: torch.dtype = getattr(torch, setting.dtype)

    def tensors() -> list[Tensor]:
        made = (torch.randn(shape, generator=generator) for _ in range(setting.layers))
        return [tensor.to(setting.device, kind) for tensor in made]

    return Inputs(tensors(), tensors(), tensors())


def forward(inputs: Inputs, mask: Mask) -> list[Tensor]:
    """Attend in every layer; return the logsumexps. What an explanation is measured against."""
    return [
        attend(query, key, value, mask, checked=False).logsumexp
        for query, key, value in zip(*inputs, strict=True)
    ]


def layers_of(inputs: Inputs, sums: list[Tensor], mask: Mask) -> list[Layer]:
    """Return the layers that the forward pass left; values stand for gradients, at no cost."""
    return [
        Layer(query, key, value, logsumexp, mask, gradient=slope)
        for query, key, value, logsumexp, slope in zip(
            *inputs, sums, inputs.values[::-1], strict=True
        )
    ]


def explain(inputs: Inputs, sums: list[Tensor], mask: Mask, backend: str = "auto") -> Tensor:
    """Return the last row's exact rollout; its entropies are computed as well."""
    layers = layers_of(inputs, sums, mask)
    last = [layers[0].shape[2] - 1]
    confidence(layers, last)
    return rollout(layers, last, backend=backend).weights["bars"]


def explain_many(inputs: Inputs, sums: list[Tensor], mask: Mask) -> Tensor:
    """Return the rollouts of the last ``MANY_ROWS`` rows in one pass."""
    bars = inputs.queries[0].shape[2]
    rows = range(max(0, bars - MANY_ROWS), bars)
    return rollout(layers_of(inputs, sums, mask), rows).weights["bars"]


def explain_every(inputs: Inputs, sums: list[Tensor], mask: Mask) -> Tensor:
    """Return every row's rollout over buckets of 64 bars."""
    every = rollout_buckets if mask.kind is MaskKind.FULL else rollout_by_age
    return every(layers_of(inputs, sums, mask)).weights["bars"]


def _rolled(inputs: Inputs, sums: list[Tensor], mask: Mask, method: Rollout = PLAIN) -> Tensor:
    last = inputs.queries[0].shape[2] - 1
    return rollout(layers_of(inputs, sums, mask), [last], method).weights["bars"]


FORMS: Final[dict[str, Callable[[Inputs, list[Tensor], Mask], Tensor]]] = {
    "max fusion": partial(_rolled, method=Rollout(fusion="max")),
    "discard": partial(_rolled, method=Rollout(discard_ratio=0.5)),
    "gradient": partial(_rolled, method=Rollout(fusion="gradient")),
}
"""The last row by fusions that take all heads of each row, a form each."""


def require_dense(setting: Setting, bars: int, *, available_bytes: int) -> None:
    """Raise ``AttentionInvalid`` where the stored matrices would not fit."""
    # The softmax holds scores and probabilities of a layer at once.
    dim = setting.heads * setting.head_dim
    need = Shape(setting.layers + 2, setting.heads, dim)
    require_memory(lambda time: dense_bytes(need, time), bars, available_bytes=available_bytes)


def dense(inputs: Inputs, mask: Mask) -> Dense:
    """Attend with stored matrices and roll them out as usual, by whole matrix products."""
    matrices = [
        reference.attention_matrix(layer_query, key, mask)
        for layer_query, key in zip(inputs.queries, inputs.keys, strict=True)
    ]
    outputs = [matrix @ value for matrix, value in zip(matrices, inputs.values, strict=True)]
    return Dense(outputs, reference.rollout(matrices, mask)[:, -1:])


def take(route: str, inputs: Inputs, mask: Mask) -> None:
    """Take the route of that name: flash, ours, dense or a form; nothing for the inputs alone."""
    if route == "dense":
        dense(inputs, mask)
    elif route != "inputs":
        sums = forward(inputs, mask)
        if route == "ours":
            explain(inputs, sums, mask)
        elif route in FORMS:
            FORMS[route](inputs, sums, mask)


class PlainStream(StreamingNetwork):
    """The same stream without entropies, rollout and history: what the explanation is added to."""

    def _layers(
        self,
        state: StreamState,
        runs: Sequence[StreamSpan],
        rows: Tensor,
        places: Tensor,
        rollout: Tensor,
    ) -> tuple[Tensor, Tensor, Attended]:
        [run] = runs
        time = rows.shape[1]
        hidden, phases = self.network.enter(rows, places[0])
        for block, past in zip(self.network.layers(), state.seen(run.streams), strict=True):
            query, key, value = (part[0] for part in block.project(hidden, phases))
            past.keys[:, run.end : run.end + time] = key
            past.values[:, run.end : run.end + time] = value
            parts = []
            tile = BLOCK_BARS if time > 1 else 1
            for start in range(0, time, tile):
                kept = slice(run.end + start - (self.config.window - 1), run.end + start + tile)
                scores = self._scale * query[:, start : start + tile] @ past.keys[:, kept].mT
                if tile > 1:
                    scores[..., :tile] += self._gone
                    scores[..., -tile:] += self._future
                shares = torch.softmax(scores, dim=-1)
                parts.append(shares @ past.values[:, kept])
            hidden = block.finish(hidden, torch.cat(parts, dim=-2)[None])
        nothing = hidden.new_zeros(self.config.layers, self.config.heads, 0, 0)
        return hidden, rollout, Attended(nothing, nothing, nothing)

    def _figures(
        self, attended: Attended, rollout: Tensor, visible: Tensor
    ) -> tuple[Tensor, Tensor]:
        layers, heads = attended.queries.shape[:2]
        width = 2 * self.config.head_dim + 1
        confidence = rollout.new_zeros(*visible.shape, layers, heads)
        return confidence, rollout.new_zeros(len(visible), 0, layers, heads, width)


class Live:
    """The default network over a stream whose rings are full, with and without explanation."""

    def __init__(self, config: FlashConfig | None = None, *, backend: str = "auto") -> None:
        """Take *backend*, one of ``stream_backends``; auto is the fastest of them."""
        with torch.random.fork_rng():
            torch.manual_seed(_SEED)
            self.network = FlashNetwork(config or FlashConfig()).eval()
        if backend == "auto":
            backend = stream_backends(self.network.config, "cpu")[0]
        self._streams = (
            StreamingNetwork(self.network, backend=backend),
            PlainStream(self.network),
        )
        self.backend = backend
        self._states = tuple(StreamState(self.network) for _ in self._streams)
        self._position = 0
        field = self.network.config.receptive_field
        for _ in range(-(-field // CHUNK_BARS)):
            for explained in (True, False):
                self.advance(CHUNK_BARS, explained=explained)
            self.move(CHUNK_BARS)

    def advance(self, bars: int, *, explained: bool) -> Advance:
        """Take in the next *bars* in one form; call it once in each form, then ``move``."""
        at = 0 if explained else 1
        positions = np.arange(self._position, self._position + bars, dtype=np.int64)
        return self._streams[at].advance(
            self._states[at], self._rows(bars)[None], positions[None], padded=bars > 1
        )

    def forward(self, bars: int) -> object:
        """Run the network over *bars* bars in one batched pass, as training does."""
        with torch.inference_mode():
            return self.network(self._rows(bars)[None])

    def move(self, bars: int) -> None:
        """Move time on by *bars* once both forms have taken them in."""
        self._position += bars

    def _rows(self, bars: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._position)
        return torch.randn(bars, self.network.config.features, generator=generator).clamp(-5, 5)


class Scan:
    """A network's own scan over known bars, its rings full: no features, forecasts or record."""

    def __init__(self, network: StreamingNetwork) -> None:
        self._network = network
        self._state = StreamState(network.network)
        self._generator = torch.Generator().manual_seed(_SEED)
        self._position = 0
        while self._position < network.config.receptive_field:
            self.advance()

    def advance(self) -> int:
        """Take in one chunk of random rows; return how many bars it holds."""
        shape = (1, CHUNK_BARS, self._network.config.features)
        rows = torch.randn(shape, generator=self._generator).clamp(-5, 5)
        positions = np.arange(self._position, self._position + CHUNK_BARS, dtype=np.int64)
        self._network.advance(self._state, rows, positions[None], padded=True)
        self._position += CHUNK_BARS
        return CHUNK_BARS


class WholeWindow:
    """A network of whole windows over one of random rows, beside full attention of its size."""

    def __init__(self, network: Network) -> None:
        """Raise ``ConfigInvalid`` of a network without attention, or one that streams."""
        config = network.config
        if network.answers_every_row or not network.has_attention:
            raise ConfigInvalid(
                "This is no network of whole windows with attention; give an informer's checkpoint."
            )
        kept = ("features", "dim", "layers", "heads", "window", "horizons", "mlp_ratio")
        size = {name: getattr(config, name) for name in kept}
        dense = FlashNetwork(FlashConfig(**size, encoding="sinusoidal", mask="full"))
        self._networks = {"network": network.eval(), "dense": dense.eval()}
        generator = torch.Generator().manual_seed(_SEED)
        self._rows = torch.randn(1, config.window, config.features, generator=generator)
        self._rows.clamp_(-5, 5)
        self._positions = torch.arange(config.window)

    def routes(self) -> dict[str, Route]:
        """Return the routes by name: each network alone, and with its explanation."""
        found: dict[str, Route] = {}
        for name, network in self._networks.items():
            found[f"{name}_forward"] = partial(self._take, network)
            found[f"{name}_explained"] = partial(self._take, network.explain)
        return found

    def _take(self, way: Callable[[Tensor, Tensor], object]) -> object:
        with torch.inference_mode():
            return way(self._rows, self._positions)


def device_name(device: str) -> str | None:
    """Return the name of an accelerator, None where there is none."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return None


def waiter(device: str) -> Callable[[], None]:
    """Return a function that waits until *device* has finished all its work."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def device_peak(route: Route) -> int:
    """Return the CUDA memory of *route* beyond what it started with."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    route()
    return torch.cuda.max_memory_allocated() - before


def device_peaks(setting: Setting, bars: int, mask: Mask) -> dict[str, float]:
    """Return the CUDA memory of forward and explanation, beyond what each started with."""
    inputs = draw(setting, bars)
    sums = forward(inputs, mask)
    flash = device_peak(lambda: forward(inputs, mask))
    ours = device_peak(lambda: explain(inputs, sums, mask))
    return {
        "flash_bytes": flash,
        "ours_bytes": ours,
        "extra_memory_ratio": ours / max(flash, 1),
    }


def matrix_product(setting: Setting, size: int) -> tuple[Route, float]:
    """Return a square matrix product and its floating-point operations: the device's peak."""
    kind: torch.dtype = getattr(torch, setting.dtype)
    one, other = torch.randn(2, size, size, device=setting.device).to(kind)
    return lambda: one @ other, 2.0 * size**3


def visible_pairs(bars: int, mask: Mask) -> int:
    """Return how many (query, key) pairs the mask shows in *bars* bars."""
    return sum(mask.visible(row, bars) for row in range(bars))


def forward_operations(setting: Setting, bars: int, mask: Mask) -> float:
    """Return the floating-point operations of a forward: two products over the visible pairs."""
    pairs = visible_pairs(bars, mask)
    return 4.0 * setting.layers * setting.heads * setting.head_dim * pairs


def explained_operations(setting: Setting, bars: int, mask: Mask) -> float:
    """Return the operations of the last row's rollout: a product over the rows that have weight."""
    pairs, rows = 0, 1
    reach = mask.window_bars - 1 if mask.kind is MaskKind.WINDOW else bars
    for _ in range(setting.layers):
        all_rows = rows * bars if mask.kind is MaskKind.FULL else visible_pairs(bars, mask)
        earlier = 0 if mask.kind is MaskKind.FULL else visible_pairs(bars - rows, mask)
        pairs += all_rows - earlier
        rows = min(bars, rows + reach)
    return 2.0 * setting.heads * setting.head_dim * pairs


def counted(route: Route) -> int:
    """Return the operations of *route* in products and attention kernels, as torch counts them.

    Of a causal kernel it counts whole matrices.
    """
    kernel = getattr(torch.ops.aten, _CPU_KERNEL)  # unknown to torch's own table

    def whole(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:  # noqa: ANN401 - shapes
        return int(sdpa_flop_count(query, key, value))

    with FlopCounterMode(display=False, custom_mapping={kernel: whole}) as counter:
        route()
    return int(counter.get_total_flops())


def set_threads(threads: int) -> None:
    """Use *threads* threads on the CPU."""
    torch.set_num_threads(threads)


def loops() -> tuple[str, ...]:
    """Return the compiled loops that are built here, the fastest first."""
    return compiled.available()


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    return {"torch": str(torch.__version__), "simd": torch.backends.cpu.get_cpu_capability()}


SEED = 7


def whole_context(config: FlashConfig) -> tuple[FlashNetwork, torch.Tensor]:
    """Return a network and one context of random features: [1, receptive field, features]."""
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(1, config.receptive_field, config.features, generator=generator)
    return FlashNetwork(config).eval(), rows


def forward_whole(network: FlashNetwork, rows: torch.Tensor) -> None:
    """Run *rows* through *network* once, keeping no gradient."""
    with torch.inference_mode():
        network(rows)
