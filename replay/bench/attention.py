"""``bench attention``: the cost of an explanation relative to its forward pass.

The routes of a row take turns, those of seconds fewer. A figure is the median of process CPU time,
or on CUDA of wall time with the device synchronised. A ratio divides medians of the same rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.daemon.session.user_class import imported
from tracepaper.replay.bench.machine import Route, interleaved
from tracepaper.strategies.attention import compiled
from tracepaper.strategies.attention.capturing import capture
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import Mask, MaskKind, shown_table
from tracepaper.strategies.attention.methods import confidence, rollout, rollout_buckets
from tracepaper.strategies.attention.passage_shares import passages
from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.attention.reads import Read
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.stream import (
    CHUNK_BARS,
    StreamingNetwork,
    StreamState,
    stream_backends,
)

SIZES: Final = (1_024, 2_048, 4_096, 8_192, 16_384)
DENSE_MAX: Final = 4_096
"""Most bars for stored matrices."""
PRODUCTS_MAX: Final = 2_048
"""Most bars for the time of their products, which grows with N³: 4,096 bars take 10 s each time."""
PASSAGES: Final = 8
PASSAGE_TOKENS: Final = (1_024, 4_096)
VOCABULARY: Final = 1_000
EVERY_MAX: Final = 8_192
"""Most bars for the buckets of every row; beyond, only the stream keeps them, for windows."""
WINDOW: Final = 1_088
MASKS: Final = {"causal": Mask(), f"window {WINDOW:,}": Mask.window(WINDOW), "full": Mask.full()}
FOREIGN_KEYS: Final = 4_096
TOKENS: Final = 2_048
LIVE_STEPS: Final = 200
LIVE_SCANS: Final = 8
BATCH_BARS: Final = 4_352
"""Bars of a batched forward: a training chunk."""
SEED: Final = 20_240_501

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """The shape and device of the measured attention."""

    layers: int = 4
    heads: int = 4
    head_dim: int = 32
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True)
class Inputs:
    """Queries, keys and values, each a list of one tensor [1, head, time, dim] per layer."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The three tensors of each layer."""
        return list(zip(self.queries, self.keys, self.values, strict=True))


def function_named(name: str) -> Callable[[Inputs, Mask], object]:
    """Return the user's ``module:function``; raise ``ConfigInvalid`` if it is no function."""
    function = imported(name, key="--compare")
    if not callable(function):
        raise ConfigInvalid(f"--compare {name} is no function; name one of (inputs, mask).")
    measured: Callable[[Inputs, Mask], object] = function
    return measured


def timed(setting: Setting, routes: Mapping[str, Route]) -> dict[str, float]:
    """Return each route's median seconds: of CPU time, or on CUDA of wall time."""
    if setting.device == "cpu":
        return interleaved(routes)
    return interleaved(routes, clock=time.perf_counter, wait=torch.cuda.synchronize)


# ---------------------------------------------------------------- our own attention


def draw(setting: Setting, bars: int) -> Inputs:
    """Return seeded normal queries, keys and values of *bars* bars."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (1, setting.heads, bars, setting.head_dim)

    def tensors() -> list[Tensor]:
        drawn = (torch.randn(shape, generator=generator) for _ in range(setting.layers))
        return [tensor.to(setting.device, setting.dtype) for tensor in drawn]

    return Inputs(tensors(), tensors(), tensors())


def forward(inputs: Inputs, mask: Mask) -> list[Layer]:
    """Attend in every layer; return the layers that an explanation reads."""
    return [
        Layer(*layer, attend(*layer, mask, checked=False).logsumexp, mask)
        for layer in inputs.layers
    ]


def explain(layers: Sequence[Read], backend: str = "auto") -> Tensor:
    """Compute the last row's entropies and exact rollout; return the rollout."""
    last = [layers[0].shape[2] - 1]
    confidence(layers, last)
    return rollout(layers, last, backend=backend).weights["tokens"]


def explain_every(layers: Sequence[Layer]) -> Tensor:
    """Return every row's rollout over buckets of 64 bars."""
    by_age = layers[0].mask.kind is not MaskKind.FULL
    return rollout_buckets(layers, by_age=by_age).weights["tokens"]


def matrices(inputs: Inputs, mask: Mask) -> Iterator[Tensor]:
    """Yield each layer's attention matrix [1, head, query, key]."""
    time = inputs.queries[0].shape[2]
    hidden = ~shown_table(mask, time, time, inputs.queries[0].device)
    for query, key, _ in inputs.layers:
        scores = query @ key.mT * query.shape[-1] ** -0.5
        yield scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)


def dense(inputs: Inputs, mask: Mask) -> Tensor:
    """Return the last row's rollout from stored matrices and their full products."""
    like = inputs.queries[0]
    identity = torch.eye(like.shape[2], dtype=like.dtype, device=like.device)
    mixed = [0.5 * identity + 0.5 * matrix.mean(dim=1) for matrix in matrices(inputs, mask)]
    return reduce(lambda below, above: above @ below, mixed)[:, -1:]


def explanation_row(
    setting: Setting,
    bars: int,
    mask: Mask,
    functions: Mapping[str, Callable[[Inputs, Mask], object]],
) -> Row:
    """Return the milliseconds of a forward pass and the ratio of each explanation to it."""
    inputs = draw(setting, bars)
    layers: list[Layer] = []

    def flash() -> None:  # runs first, and leaves the layers that the others read
        layers[:] = forward(inputs, mask)

    routes: dict[str, Route] = {"flash": flash, "one decision": partial(explain, layers)}
    if compiled.available() and mask.kind is MaskKind.CAUSAL:
        routes["without loops"] = partial(explain, layers, "tiles")
    if bars <= EVERY_MAX:
        routes["every bar"] = partial(explain_every, layers)
        size = bars // PASSAGES
        spans = {str(at): range(at * size, (at + 1) * size) for at in range(PASSAGES)}
        routes[f"{PASSAGES} passages"] = partial(passages, layers, spans)
    if bars <= PRODUCTS_MAX:
        routes["stored matrices"] = partial(dense, inputs, mask)
    routes |= {name: partial(function, inputs, mask) for name, function in functions.items()}
    return _ratios(timed(setting, routes), "flash")


def _ratios(seconds: Mapping[str, float], base: str) -> Row:
    others = {
        f"{name} ÷ {base}": spent / seconds[base] for name, spent in seconds.items() if name != base
    }
    return {f"{base} ms": 1e3 * seconds[base]} | others


# ---------------------------------------------------------------- models of other libraries


def foreign_row(setting: Setting, keys: int = FOREIGN_KEYS) -> Row:
    """Return the cost of reading a captured layer relative to torch's attention.

    Eight heads of 64 dimensions share two key heads. The reads are: carrying all rows, carrying
    one, the entropies of all rows, and carrying all rows through a layer with capped scores.
    """
    generator = torch.Generator().manual_seed(SEED)

    def tensor(heads: int) -> Tensor:
        drawn = torch.randn(1, heads, keys, 64, generator=generator)
        return drawn.to(setting.device, setting.dtype)

    query, key, value = tensor(8), tensor(2), tensor(2)

    def sdpa() -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    with torch.no_grad(), capture() as captured:
        sdpa()
    [layer] = captured.reads
    assert isinstance(layer, Layer)
    capped = Layer.of(query, key, value, layer.mask, softcap=30.0)
    whole = torch.full((1, 1, keys), 1.0 / keys, device=setting.device)
    newest = torch.zeros_like(whole)
    newest[..., -1] = 1.0
    routes: dict[str, Route] = {
        "sdpa": sdpa,
        "whole rows": lambda: layer.carry(whole),
        "one query": lambda: layer.carry(newest),
        "entropy of all rows": layer.entropy,
        "whole rows, capped": lambda: capped.carry(whole),
    }
    with torch.no_grad():
        return _ratios(timed(setting, routes), "sdpa")


def _llama(setting: Setting, kernel: str) -> nn.Module:
    """Return a random Llama of 4 layers that attends by *kernel*."""
    transformers = import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1_376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model: nn.Module = transformers.LlamaForCausalLM._from_config(  # noqa: SLF001 - the documented way
            config, attn_implementation=kernel
        )
    return model.eval().to(setting.device)


def _words(setting: Setting, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, VOCABULARY, (1, tokens), generator=generator).to(setting.device)


def passage_rows(setting: Setting, tell: Callable[[str], None]) -> Iterator[Row]:
    """Yield by length the time of a Llama's forward with the shares of eight passages ÷ without."""
    if find_spec("transformers") is None:
        yield {"tokens": "transformers is not installed"}
        return
    model = _llama(setting, "sdpa")
    for tokens in PASSAGE_TOKENS:
        tell(f"passages of {tokens:,} tokens")
        words, size = _words(setting, tokens), tokens // PASSAGES
        spans = {str(at): range(at * size, (at + 1) * size) for at in range(PASSAGES)}

        def forward(words: Tensor = words) -> None:
            with torch.no_grad():
                model(words)

        def explained(words: Tensor = words, spans: Mapping[str, range] = spans) -> None:
            with torch.no_grad(), capture(model) as captured:
                model(words)
            captured.passages(spans)

        routes: dict[str, Route] = {"forward": forward, "with passages": explained}
        yield {"tokens": tokens} | _ratios(timed(setting, routes), "forward")


def model_rows(
    setting: Setting, tell: Callable[[str], None], tokens: int = TOKENS
) -> Iterator[Row]:
    """Yield the cost of each explanation of a random Llama, its forward pass included, as a ratio.

    If installed, transformers returns its attention matrices and captum the gradients of the same
    logit, for comparison.
    """
    if find_spec("transformers") is None:
        yield {"explanation": "transformers is not installed", "÷ forward": None}
        return
    models = {name: _llama(setting, name) for name in ("sdpa", "eager")}
    words = _words(setting, tokens)
    model, eager = models["sdpa"], models["eager"]
    embedded = cast("Any", model).get_input_embeddings()(words).detach()

    def logit(x: Tensor) -> Tensor:
        last: Tensor = model(inputs_embeds=x, logits_to_keep=1).logits[:, -1, 0]
        return last

    def plain() -> None:
        with torch.no_grad():
            logit(embedded)

    def rolled() -> None:
        with torch.no_grad(), capture(model) as captured:
            logit(embedded)
        captured.rollout()

    def relevant() -> None:
        x = embedded.clone().requires_grad_()
        with relevance_rules(model):
            relevance(logit(x)[0], x)

    def matrices() -> None:
        with torch.no_grad():
            weights = eager(words, output_attentions=True, logits_to_keep=1).attentions
            held = torch.eye(tokens, device=setting.device)[-1:]
            for matrix in reversed(weights):
                held = 0.5 * held + 0.5 * held @ matrix[0].mean(dim=0)

    routes: dict[str, Route] = {
        "forward": plain,
        "attention.capture and rollout": rolled,
        "attention.relevance": relevant,
        "transformers, output_attentions and rollout": matrices,
    }
    if find_spec("captum") is not None:
        methods = import_module("captum.attr")
        gradients = methods.InputXGradient(logit)
        routes["captum, input times gradient"] = lambda: gradients.attribute(
            embedded.clone().requires_grad_()
        )
    tell("another library's model")
    seconds = timed(setting, routes)
    for name, spent in seconds.items():
        yield {"explanation": name, "ms": 1e3 * spent, "÷ forward": spent / seconds["forward"]}


# ---------------------------------------------------------------- our networks


class Scan:
    """A network's stream over random rows with full rings; no features, forecasts or record."""

    def __init__(self, network: StreamingNetwork) -> None:
        self._network = network
        self._state = StreamState(network.network)
        self._generator = torch.Generator().manual_seed(SEED)
        self._position = 0
        while self._position < network.config.receptive_field:
            self.advance()

    def advance(self, bars: int = CHUNK_BARS) -> int:
        """Advance the stream by *bars* random rows; return *bars*."""
        rows = torch.randn(1, bars, self._network.config.features, generator=self._generator)
        positions = np.arange(self._position, self._position + bars, dtype=np.int64)
        self._network.advance(self._state, rows.clamp(-5, 5), positions[None], padded=bars > 1)
        self._position += bars
        return bars


def live_row(config: FlashConfig | None = None) -> Row:
    """Return the cost of an explained live step of the default network, and of a bar of a scan."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = FlashNetwork(config or FlashConfig()).eval()
    fastest = stream_backends(network.config, "cpu")[0]
    scan = Scan(StreamingNetwork(network, backend=fastest))
    generator = torch.Generator().manual_seed(SEED)
    rows = torch.randn(1, BATCH_BARS, network.config.features, generator=generator).clamp(-5, 5)
    steps = []
    for _ in range(LIVE_STEPS):
        before = time.process_time()
        scan.advance(1)
        steps.append(time.process_time() - before)

    def batch() -> None:
        with torch.inference_mode():
            network(rows)

    def scanned() -> None:
        for _ in range(LIVE_SCANS):
            scan.advance()

    seconds = interleaved({"scan": scanned, "batch": batch})
    bar_s = seconds["scan"] / LIVE_SCANS / CHUNK_BARS
    return {
        "live step ms": 1e3 * statistics.median(steps),
        "p99 ms": 1e3 * statistics.quantiles(steps, n=100)[-1],
        "bar of a scan µs": 1e6 * bar_s,
        "÷ a batched forward": bar_s / (seconds["batch"] / BATCH_BARS),
    }
