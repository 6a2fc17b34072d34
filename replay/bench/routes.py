"""The implementations that ``bench attention`` compares.

Beside the product's own there are other forms of explanation and a user's implementations: a
function ``module:function`` of the inputs (their ``queries``, ``keys`` and ``values`` are lists
with one tensor [1, head, time, dim] a layer) and the mask (``kind`` and ``window_bars``).

Each attends in every layer over the same queries, keys and values, and explains the last row.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from tracepaper.daemon.session.user_class import imported
from tracepaper.replay.bench import workloads
from tracepaper.replay.bench.machine import status_kib
from tracepaper.replay.bench.workloads import Inputs, Setting
from tracepaper.strategies.attention.kernels import attend, cross_attend
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.linear import (
    LinearLayer,
    LinearRead,
    attend_linearly,
    distance_from_softmax,
    draw_directions,
    elu_features,
    random_features,
)
from tracepaper.strategies.attention.masks import Mask, closed_keys
from tracepaper.strategies.attention.methods import confidence, rollout
from tracepaper.strategies.attention.probsparse import (
    SparseRead,
    SparseRows,
    attend_sparsely,
    sample_keys,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

ROUTES: Final = ("inputs", "flash", "ours", "dense")
FORMS_MAX: Final = 4_096
"""Beyond, forms that need whole rows take minutes."""
ROUNDS_MIN: Final = 3
ROUNDS_MAX: Final = 9
ENOUGH_S: Final = 3.0
"""Once its rounds took this long together, a size has been measured often enough."""
_PEAK: Final = "peak of a route, bytes: "

Figures = dict[str, Any]
Route = Callable[[], object]
Implementation = Callable[[Inputs, Mask], object]


def mask_named(name: str) -> Mask:
    """Return the mask called *name*: full, causal or window:BARS."""
    if name == "full":
        return Mask.full()
    if name == "causal":
        return Mask()
    kind, _, bars = name.partition(":")
    if kind != "window" or not bars.isdigit():
        raise ConfigInvalid(f"No mask is called {name!r}; choose full, causal or window:BARS.")
    return Mask.window(int(bars))


def implementation(name: str) -> Implementation:
    """Return the user's function ``module:function``; raise ``ConfigInvalid`` where it is none."""
    found = imported(name, key="--compare")
    if not callable(found):
        raise ConfigInvalid(f"--compare {name} is no function; name one of (inputs, mask).")
    made: Implementation = found
    return made


def interleaved(
    routes: Mapping[str, Route],
    *,
    clock: Callable[[], float] = time.process_time,
    wait: Callable[[], None] = lambda: None,
    warm_up: Callable[[str, Route], object] = lambda _name, route: route(),
) -> dict[str, float]:
    """Return each route's median seconds; every round takes each route once, after a warm-up.

    *wait* returns when the work that a route started is done.
    """
    for name, route in routes.items():
        warm_up(name, route)
    wait()
    spent: dict[str, list[float]] = {name: [] for name in routes}
    for done in range(ROUNDS_MAX):
        if done >= ROUNDS_MIN and sum(map(sum, spent.values())) > ENOUGH_S:
            break
        for name, route in routes.items():
            before = clock()
            route()
            wait()
            spent[name].append(clock() - before)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def other_forms(
    setting: Setting,
    bars: int,
    mask_name: str,
    compare: Sequence[str],
    *,
    peaks: Peaks | None = None,
) -> list[Figures]:
    """Return a row for each other form of explanation, and for each implementation in *compare*.

    Seconds, ratios to the flash forward in the same rounds, floating-point operations as torch
    counts them in its products and attention kernels and, with *peaks*, the peak beyond the
    inputs: of a process of its own on the CPU, of the device on CUDA.
    """
    mask = mask_named(mask_name)
    inputs = workloads.draw(setting, bars)
    sums = workloads.forward(inputs, mask)
    routes: dict[str, Route] = {}
    for form, explain in workloads.FORMS.items() if bars <= FORMS_MAX else ():
        routes[form] = partial(explain, inputs, sums, mask)
    for name in compare:
        routes[name] = partial(implementation(name), inputs, mask)
    on_cpu = setting.device == "cpu"
    operations: dict[str, int] = {}
    seconds = interleaved(
        {"flash": lambda: workloads.forward(inputs, mask), **routes},
        clock=time.process_time if on_cpu else time.perf_counter,
        wait=workloads.waiter(setting.device),
        warm_up=lambda name, route: operations.update({name: workloads.counted(route)}),
    )
    rows = []
    for name, route in routes.items():
        row: Figures = {"bars": bars, "mask": mask_name, "route": name, "s": seconds[name]}
        row |= {"ratio": seconds[name] / seconds["flash"], "flops": operations[name]}
        if not on_cpu:
            row["bytes"] = workloads.device_peak(route)
        elif peaks is not None:
            row["bytes"] = peaks.of(name, mask_name, bars)
        rows.append(row)
    return rows


class Peaks:
    """A process that has imported everything, and forks one of its own for each peak.

    Imports take longer than most routes. Raises ``ConfigInvalid`` on a system without ``/proc``.
    """

    def __init__(self) -> None:
        if not Path("/proc/self/clear_refs").exists():
            raise ConfigInvalid(
                "Peaks of memory are read from Linux's /proc; measure without memory."
            )
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End the process."""
        with self._process:
            self._process.kill()

    def of(self, route: str, mask: str, bars: int) -> int:
        """Measure the peak memory of *route* beyond the imports.

        Raises ``DataInvalid`` where its process fails, as when memory runs out.
        """
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        asked.write(f"{json.dumps([route, mask, bars])}\n")
        asked.flush()
        # A user's function may have printed before it.
        for line in told:
            if line.startswith(_PEAK):
                found = int(line.removeprefix(_PEAK))
                if found >= 0:
                    return found
                break
        raise DataInvalid(
            f"Measuring {route} at {bars} bars failed; free memory or choose fewer bars."
        )


def serve() -> None:
    """Answer each line of stdin, a route, a mask and bars, with the peak of a process of its own.

    -1 stands for one that failed.
    """
    assert MECHANISMS
    assert workloads.FORMS
    for line in sys.stdin:
        route, mask_name, bars = json.loads(line)
        child = os.fork()
        if not child:
            ended = 1
            try:
                sys.stdout.write(f"{_PEAK}{run(route, mask_name, bars)}\n")
                sys.stdout.flush()
                ended = 0
            finally:
                os._exit(ended)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            sys.stdout.write(f"{_PEAK}-1\n")
            sys.stdout.flush()


def run(route: str, mask_name: str, bars: int) -> int:
    """Take the route in this process; return its peak beyond the imports in bytes."""
    known = (*ROUTES, *workloads.FORMS, *MECHANISMS)
    if route not in known and ":" not in route:
        raise ConfigInvalid(f"No route is called {route!r}; choose one of {', '.join(known)}.")
    mask = mask_named(mask_name)
    workloads.set_threads(1)
    setting = workloads.Setting()
    own = implementation(route) if ":" in route else None

    def taken(inputs: Inputs) -> None:
        if route in MECHANISMS:
            MECHANISMS[route].make(inputs).explain()
        elif own is None:
            workloads.take(route, inputs, mask)
        else:
            own(inputs, mask)

    # Once small, for the pages of code that it takes belong to no route.
    taken(workloads.draw(setting, 64))
    before = _start()
    taken(workloads.draw(setting, bars))
    return (status_kib("VmHWM") - before) * 1024


def _start() -> int:
    """Forget the peak that the imports made; return what is held now, in KiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status_kib("VmRSS")


POOLED: Final = 256
"""Means of keys and values that ``Linformer`` attends over, at most."""
BARS_A_KEY: Final = 4
"""Bars of the first stream for one of the stream that it reads."""


class Mechanism(Protocol):
    """One way to attend, over inputs that it was made with."""

    def forward(self) -> object:
        """Attend in every layer."""
        ...

    def explain(self) -> Tensor:
        """Return the last row's exact rollout [1, 1, time]; its entropies are computed as well."""
        ...


class Linear:
    """Linear attention over the same tensors, by one of its feature maps."""

    def __init__(self, inputs: Inputs, mask: Mask, feature_map: str) -> None:
        heads, dim = inputs.queries[0].shape[1], inputs.queries[0].shape[3]
        self._inputs, self._mask = inputs, mask
        self._directions = (
            draw_directions(heads, dim, 2 * dim, seed=0).to(inputs.queries[0])
            if feature_map == "random"
            else None
        )
        self._layers = self.forward()

    def forward(self) -> list[LinearLayer]:
        """Attend in every layer; return what each attended with."""
        layers = []
        for query, key, value in zip(*self._inputs, strict=True):
            if self._directions is None:
                features = elu_features(query), elu_features(key)
            else:
                features = random_features(query, key, self._directions)
            layers.append(attend_linearly(*features, value, self._mask).layer)
        return layers

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        last = [self._inputs.queries[0].shape[2] - 1]
        reads = [LinearRead(layer, self._mask) for layer in self._layers]
        confidence(reads, last)
        return rollout(reads, last).weights["bars"]

    def distance(self) -> float:
        """Return the distance of the last row from the softmax of the same queries and keys."""
        last = [self._inputs.queries[0].shape[2] - 1]
        far = [
            distance_from_softmax(layer, query, key, last, self._mask).mean()
            for layer, query, key in zip(
                self._layers, self._inputs.queries, self._inputs.keys, strict=True
            )
        ]
        return float(torch.stack(far).mean())


class ChunkedCausal:
    """Causal attention by plain formulas over some queries at a time."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._sums = self.forward()

    def forward(self) -> list[Tensor]:
        """Attend in every layer; return the logsumexps."""
        return [
            attend(*layer, Mask(), backend="chunked", checked=False).logsumexp
            for layer in zip(*self._inputs, strict=True)
        ]

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        return workloads.explain(self._inputs, self._sums, Mask(), "tiles")


class CrossStreams:
    """A stream that reads another of wider bars in every layer, of these the closed ones."""

    def __init__(self, inputs: Inputs) -> None:
        bars, keys = inputs.queries[0].shape[2], inputs.keys[0].shape[2] // BARS_A_KEY
        others = [[x[:, :, :keys] for x in part] for part in (inputs.keys, inputs.values)]
        self._layers = list(zip(inputs.queries, *others, strict=True))
        self._lengths = (bars, keys)
        opened = BARS_A_KEY * torch.arange(keys, device=inputs.queries[0].device)
        closes = torch.arange(bars, device=opened.device)
        self._seen = closed_keys(closes, opened + BARS_A_KEY - 1)
        self._sums = self.forward()

    def forward(self) -> list[Tensor]:
        """Attend in every layer; return the logsumexps."""
        return [
            cross_attend(query, key, value, self._seen).logsumexp
            for query, key, value in self._layers
        ]

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        mask, last = Mask(causal=False, seen=self._seen), [self._lengths[0] - 1]
        reads = [
            Layer(query, key, value, logsumexp, mask, source="slower")
            for (query, key, value), logsumexp in zip(self._layers, self._sums, strict=True)
        ]
        confidence(reads, last)
        found = rollout(reads, last).weights
        return torch.cat((found["bars"], found["slower"]), dim=-1)


class SparseQueries:
    """ProbSparse attention, which always lets the last row attend; its ranking sees all rows."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._last = inputs.queries[0].shape[2] - 1
        drawn = sample_keys(self._last + 1, Mask(), seed=0)
        self._samples = drawn.to(inputs.queries[0].device)
        self._rows = self.forward()

    def forward(self) -> list[SparseRows]:
        """Attend in every layer; return the rows that attended."""
        return [
            attend_sparsely(*layer, Mask(), self._samples, always=[self._last]).rows
            for layer in zip(*self._inputs, strict=True)
        ]

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        reads = [SparseRead(rows) for rows in self._rows]
        confidence(reads, [self._last])
        return rollout(reads, [self._last]).weights["bars"]


class Linformer:
    """Full attention over at most ``POOLED`` means of neighbouring keys and values.

    Projected by means along time, the rows over the bars stay distributions: each mean's weight is
    shared by its bars. Source: Wang et al., 2020, arXiv:2006.04768 (mean pooling). Not causal.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._layers = list(zip(*inputs, strict=True))
        time = inputs.queries[0].shape[2]
        block = -(-time // POOLED)
        self._of_bar = torch.arange(time, device=inputs.queries[0].device) // block
        self._counts = self._of_bar.bincount()
        self._means = [self._pooled(key) for _, key, _ in self._layers]
        self.forward()

    def _pooled(self, x: Tensor) -> Tensor:
        """Return the mean of each block of bars: [1, head, time, dim] as [1, head, block, dim]."""
        sums = x.new_zeros(*x.shape[:2], len(self._counts), x.shape[3])
        return sums.index_add_(2, self._of_bar, x) / self._counts[:, None]

    def forward(self) -> list[Tensor]:
        """Attend in every layer; return the outputs."""
        return [
            attend(query, self._pooled(key), self._pooled(value), Mask.full()).output
            for query, key, value in self._layers
        ]

    def explain(self) -> Tensor:
        """Return the last row's exact rollout; its entropies are computed as well."""
        time = len(self._of_bar)
        held = torch.zeros(time, device=self._of_bar.device)
        held[-1] = 1.0
        for (query, _, _), means in zip(reversed(self._layers), reversed(self._means), strict=True):
            scores = query @ means.mT * query.shape[-1] ** -0.5
            rows = scores[0].float().softmax(dim=-1)  # [head, time, block]
            self.confidence(rows[:, -1])
            moved = torch.einsum("t,htb->b", held, rows) / len(rows)
            held = 0.5 * held + 0.5 * (moved / self._counts)[self._of_bar]
        return held[None, None]

    def confidence(self, row: Tensor) -> Tensor:
        """Return that of *row* [head, block] over the bars, each block's weight shared equally."""
        entropy = (torch.special.entr(row) + row * self._counts.log()).sum(dim=-1)
        return 1.0 - entropy / math.log(len(self._of_bar))


class MeasuredMechanism(NamedTuple):
    """A mechanism that is measured, up to some number of bars where more would take minutes."""

    make: Callable[[Inputs], Mechanism]
    longest: int | None = None


MECHANISMS: Final = {
    "linear, elu": MeasuredMechanism(partial(Linear, mask=Mask(), feature_map="elu")),
    "linear, random": MeasuredMechanism(partial(Linear, mask=Mask(), feature_map="random")),
    "cross": MeasuredMechanism(CrossStreams),
    "probsparse": MeasuredMechanism(SparseQueries),
    "linformer, not causal": MeasuredMechanism(Linformer),
    "chunked": MeasuredMechanism(ChunkedCausal, 4_096),
}
"""What is measured beside the flash forward, causal."""


if __name__ == "__main__":
    serve()
