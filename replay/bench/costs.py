"""``bench attention``: its sections, and the tables of costs by mechanism and by length.

A peak is the resident memory of a process of its own beyond its inputs. GFLOP count matrix products
and attention kernels; of a causal kernel PyTorch counts the whole matrix.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tracepaper.replay.bench.attention import (
    DENSE_MAX,
    EVERY_MAX,
    MASKS,
    PASSAGES,
    SEED,
    SIZES,
    TOKENS,
    Inputs,
    Row,
    Setting,
    dense,
    draw,
    explain,
    explain_every,
    explanation_row,
    foreign_row,
    forward,
    function_named,
    live_row,
    matrices,
    model_rows,
    passage_rows,
    timed,
)
from tracepaper.replay.bench.machine import Route, resident_mb
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.linear import attend_linearly, elu_features
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.probsparse import attend_sparsely, sample_keys
from tracepaper.strategies.attention.reads import MatrixRead, Read
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig, CrossAssetNetwork
from tracepaper.strategies.networks.order_book import OrderBookConfig, OrderBookNetwork
from tracepaper.strategies.order_book import COLUMNS

DEVICES: Final = ("cpu", "cuda")
BOOKS: Final = 1_000
"""Books of 100 tokens in the order book's row of memory."""
SYMBOLS: Final = 100
"""Symbols in the cross-asset network's row of memory."""
SYMBOL_BARS: Final = 2_048
_CPU_KERNEL: Final = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001


class BenchRequest(NamedTuple):
    """What ``bench attention`` was asked for."""

    sizes: Sequence[int]
    setting: Setting
    compare: Sequence[str]
    tell: Callable[[str], None]


def measure(
    sizes: Sequence[int] = SIZES,
    *,
    sections: Sequence[str] = (),
    device: str = "cpu",
    threads: int = 1,
    compare: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[str, Row]]:
    """Yield each row of figures with the title of its table, as soon as it is measured.

    *sections* are names of ``SECTIONS``, by default all. *compare* names functions
    ``module:function`` of (``Inputs``, ``Mask``) to measure as well. Raises ``ConfigInvalid`` if
    one is no function, for an unknown section, or if the device is missing.
    """
    for name in sections:
        if name not in SECTIONS:
            raise ConfigInvalid(f"There is no section {name!r}; choose {', '.join(SECTIONS)}.")
    if device not in DEVICES:
        raise ConfigInvalid(f"--device is {device!r}; choose one of {', '.join(DEVICES)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid("--device is cuda, and PyTorch finds none here; leave it out.")
    for name in compare:
        function_named(name)
    torch.set_num_threads(threads)
    setting = Setting()
    if device == "cuda":
        setting = Setting(heads=2, head_dim=64, device=device, dtype=torch.bfloat16)
    request = BenchRequest(sizes, setting, compare, tell)
    for name in sections or SECTIONS:
        section = SECTIONS[name]
        if device in section.devices:
            yield from ((section.title, row) for row in section.rows(request))


# ---------------------------------------------------------------- mechanisms


def stored(inputs: Inputs) -> list[Read]:
    """Attend by stored causal matrices."""
    reads: list[Read] = []
    for matrix, value in zip(matrices(inputs, Mask()), inputs.values, strict=True):
        _ = matrix @ value
        reads.append(MatrixRead(matrix))
    return reads


def chunked(inputs: Inputs) -> list[Layer]:
    """Attend by the plain formulas, some rows at a time."""
    return [
        Layer(*layer, attend(*layer, Mask(), backend="chunked", checked=False).logsumexp)
        for layer in inputs.layers
    ]


def linear(inputs: Inputs) -> list[Read]:
    """Attend linearly, with the features ``elu + 1``."""
    return [
        attend_linearly(elu_features(query), elu_features(key), value, Mask())[1]
        for query, key, value in inputs.layers
    ]


def sparse(inputs: Inputs) -> list[Read]:
    """Attend by ProbSparse; the last row always attends."""
    bars = inputs.queries[0].shape[2]
    samples = sample_keys(bars, Mask(), seed=SEED)
    return [
        attend_sparsely(*layer, Mask(), samples, always=(bars - 1,))[1] for layer in inputs.layers
    ]


MECHANISMS: Final[dict[str, Callable[[Inputs], Sequence[Read]]]] = {
    "dense": stored,
    **{name: partial(forward, mask=mask) for name, mask in MASKS.items()},
    "linear": linear,
    "ProbSparse": sparse,
    "chunked": chunked,
}


def mechanism_rows(request: BenchRequest) -> Iterator[Row]:
    """Yield what forward and explanation of each mechanism cost, beside dense attention."""
    setting = request.setting
    bars = max((size for size in request.sizes if size <= DENSE_MAX), default=DENSE_MAX)
    inputs = draw(setting, bars)
    routes: dict[str, Route] = {}
    for name, attend_by in MECHANISMS.items():
        routes[name] = partial(attend_by, inputs)
        routes[f"{name}, explained"] = partial(explain, attend_by(inputs))
    request.tell(f"mechanisms, {bars:,} bars")
    seconds = timed(setting, routes)
    for name in MECHANISMS:
        request.tell(f"memory of {name}")
        yield {
            "mechanism": name,
            "bars": bars,
            "forward ms": 1e3 * seconds[name],
            "÷ dense": seconds[name] / seconds["dense"],
            "explanation ms": 1e3 * seconds[f"{name}, explained"],
            "÷ its forward": seconds[f"{name}, explained"] / seconds[name],
            "peak MB": peak_apart(f"{name}, explained", bars),
            "GFLOP": gigaflop(routes[name]),
        }


def operation_rows(request: BenchRequest) -> Iterator[Row]:
    """Yield the products of ProbSparse beside those of dense attention, by length."""
    for bars in request.sizes:
        request.tell(f"operations of {bars:,} bars")
        inputs = draw(request.setting, bars)
        counted = gigaflop(partial(sparse, inputs))
        whole = gigaflop(partial(forward, inputs, Mask.full()))
        yield {
            "bars": bars,
            "ProbSparse GFLOP": counted,
            "dense GFLOP": whole,
            "÷ dense": counted / whole,
        }


def gigaflop(route: Route) -> float:
    """Return the operations of *route* in products and attention kernels, in units of 10⁹."""

    def kernel(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:  # noqa: ANN401
        return int(sdpa_flop_count(query, key, value))

    with (
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping={_CPU_KERNEL: kernel}) as counter,
    ):
        route()
    return counter.get_total_flops() / 1e9


# ---------------------------------------------------------------- memory


def _explained(inputs: Inputs) -> object:
    return explain(forward(inputs, Mask()))


def _every(inputs: Inputs) -> object:
    return explain_every(forward(inputs, Mask()))


MEMORY: Final[dict[str, tuple[Callable[[Inputs], object], int | None]]] = {
    "flash MB": (partial(forward, mask=Mask()), None),
    "one decision MB": (_explained, None),
    "every bar MB": (_every, EVERY_MAX),
    "stored matrices MB": (partial(dense, mask=Mask()), DENSE_MAX),
}
"""Routes whose memory is measured by length, each with the most bars that it takes."""


def memory_rows(request: BenchRequest) -> Iterator[Row]:
    """Yield the peaks of each route by length, and those of explanations of large networks."""
    for bars in request.sizes:
        request.tell(f"memory of {bars:,} bars")
        fitting = (name for name, (_, most) in MEMORY.items() if most is None or bars <= most)
        yield {"bars": bars} | {name: peak_apart(name, bars) for name in fitting}
    request.tell("memory of 100,000 tokens of order books")
    yield {"books": BOOKS, "order book, explained MB": peak_apart("order book", BOOKS)}
    request.tell(f"memory of {SYMBOLS} symbols")
    peak_mb = peak_apart("crossasset", SYMBOL_BARS)
    yield {"symbols": SYMBOLS, "bars": SYMBOL_BARS, "cross-asset, explained MB": peak_mb}


def peak_apart(route: str, bars: int) -> float:
    """Return the peak of *route* in a process of its own, in MB beyond its inputs."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(peak, route, bars).result()


def peak(route: str, bars: int) -> float:
    """Return the peak of *route* beyond its inputs in MB, after a warm-up with a few bars."""
    torch.set_num_threads(1)
    warm, measured = _prepared(route, 32), _prepared(route, bars)
    warm()
    before = resident_mb()
    measured()
    return resident_mb(peak=True) - before


def _prepared(route: str, bars: int) -> Route:
    """Return *route* over drawn inputs."""
    if route == "order book":
        network = OrderBookNetwork(OrderBookConfig(window=BOOKS)).eval()
        tokens = torch.randn(bars, network.config.tokens, len(COLUMNS)).clamp(-5, 5)
        return partial(network.explain, tokens)
    if route == "crossasset":
        names = tuple(f"S{number}" for number in range(SYMBOLS))
        together = CrossAssetNetwork(CrossAssetConfig(names)).eval()
        rows = torch.randn(1, SYMBOLS, bars, together.config.features)
        places = torch.arange(SYMBOLS), torch.arange(bars)
        return torch.no_grad()(partial(together.explain, rows, *places))
    inputs = draw(Setting(), bars)
    if route in MEMORY:
        return partial(MEMORY[route][0], inputs)
    attend_by = MECHANISMS[route.removesuffix(", explained")]
    return lambda: explain(attend_by(inputs))


# ---------------------------------------------------------------- milliseconds on a device


def length_rows(request: BenchRequest) -> Iterator[Row]:
    """Yield milliseconds by length of forward and backward, beside PyTorch's own attention."""
    for bars in request.sizes:
        request.tell(f"milliseconds of {bars:,} bars")
        yield {"bars": bars} | length_row(request.setting, draw(request.setting, bars))


def length_row(setting: Setting, inputs: Inputs) -> Row:
    """Return the milliseconds of each route over *inputs*."""
    torchs = partial(functional.scaled_dot_product_attention, is_causal=True)
    routes: dict[str, Route] = {
        "forward": partial(forward, inputs, Mask()),
        "forward and backward": partial(backward, inputs, attended),
        "PyTorch's forward": lambda: [torchs(*layer) for layer in inputs.layers],
        "PyTorch's forward and backward": partial(backward, inputs, torchs),
        "one decision": partial(explain, forward(inputs, Mask())),
    }
    return {f"{name} ms": 1e3 * spent for name, spent in timed(setting, routes).items()}


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return our causal attention."""
    return attend(query, key, value, Mask(), checked=False).output


def backward(inputs: Inputs, attention: Callable[..., Tensor]) -> list[tuple[Tensor, ...]]:
    """Return the gradients of each layer's queries, keys and values."""
    gradients = []
    for layer in inputs.layers:
        leaves = [tensor.detach().requires_grad_() for tensor in layer]
        gradients.append(torch.autograd.grad(attention(*leaves).sum(), leaves))
    return gradients


# ---------------------------------------------------------------- sections


def explanation_rows(request: BenchRequest) -> Iterator[Row]:
    """Yield the cost of explanations by length and mask."""
    functions = {name: function_named(name) for name in request.compare}
    for bars in request.sizes:
        for name, mask in MASKS.items():
            request.tell(f"{bars:,} bars, {name}")
            row = explanation_row(request.setting, bars, mask, functions)
            yield {"bars": bars, "mask": name} | row


class BenchSection(NamedTuple):
    """A table of ``bench attention``."""

    title: str
    rows: Callable[[BenchRequest], Iterator[Row]]
    devices: tuple[str, ...] = DEVICES


SECTIONS: Final = {
    "explanation": BenchSection("an explanation beside the flash forward", explanation_rows),
    "layer": BenchSection(
        "one captured layer beside its attention", lambda of: iter([foreign_row(of.setting)])
    ),
    "llama": BenchSection(
        f"a Llama of 4 layers, {TOKENS:,} tokens", lambda of: model_rows(of.setting, of.tell)
    ),
    "passages": BenchSection(
        f"a Llama of 4 layers, {PASSAGES} passages", lambda of: passage_rows(of.setting, of.tell)
    ),
    "stream": BenchSection(
        "the default network as a stream", lambda _: iter([live_row()]), ("cpu",)
    ),
    "mechanisms": BenchSection("mechanisms beside dense attention", mechanism_rows, ("cpu",)),
    "memory": BenchSection("peak memory beyond the inputs, causal", memory_rows, ("cpu",)),
    "operations": BenchSection("operations of ProbSparse", operation_rows, ("cpu",)),
    "lengths": BenchSection("milliseconds by length, causal", length_rows, ("cuda",)),
}
