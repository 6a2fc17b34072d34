"""``bench attention``: the cost of explanations relative to the forward pass.

Routes are measured interleaved, medians are of process CPU time (of wall time around a
synchronised device on CUDA), and each peak of memory comes from a process of its own.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracepaper.replay.bench import workloads
from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.routes import (
    MECHANISMS,
    Figures,
    Linear,
    Peaks,
    Route,
    implementation,
    interleaved,
    mask_named,
    other_forms,
)
from tracepaper.replay.bench.workloads import Setting
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.stream import CHUNK_BARS

if TYPE_CHECKING:
    from pathlib import Path


SIZES: Final = (512, 1_024, 2_048, 4_096, 8_192, 16_384)
LONG: Final = 65_536
DENSE_MAX: Final = 4_096
"""Beyond, the usual route takes minutes: its whole matrix products grow with N³."""
EVERY_MAX: Final = 8_192
"""Beyond, buckets of every row are kept for windows alone, by the stream."""
WINDOW: Final = 1_088
MASKS: Final = ("causal", f"window:{WINDOW}", "full")
_MATRIX_SIDE: Final = 8_192
_BATCH_BARS: Final = 4_352
"""Bars of a batched forward: a training chunk."""
_STEPS: Final = 200
_SCANS: Final = 8


def measure(
    sizes: Sequence[int] = SIZES,
    *,
    long: bool = False,
    memory: bool = True,
    threads: int = 1,
    compare: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
    show: Callable[[str, Figures], None] = lambda _kind, _row: None,
) -> Figures:
    """Return all figures as plain numbers: seconds, bytes and ratios.

    ``long`` adds 65,536 bars and the dense route at 8,192; ``memory`` starts a process for each
    peak; *compare* names a user's implementations (``routes.implementation``), measured
    beside the other forms of explanation; *tell* hears what is being measured, *show* gets each
    row as soon as it is, with the kind of its table. Where compiled loops are built, torch is
    measured beside them.
    """
    for name in compare:
        implementation(name)
    workloads.set_threads(threads)
    setting = workloads.Setting()
    found: Figures = {
        "machine": _machine(threads) | workloads.versions(),
        "setting": {name: getattr(setting, name) for name in ("layers", "heads", "head_dim")},
        **{kind: [] for kind in ("attention", "forms", "mechanisms")},
    }
    backends = ("auto", "tiles") if workloads.loops() else ("auto",)
    with Peaks() if memory else nullcontext() as peaks:
        for kind, row in _rows(setting, sizes, backends, compare, peaks, tell, long=long):
            found[kind].append(row)
            show(kind, row)
    tell("live step and batched scan")
    found |= {"live": _live("auto"), "live_torch": _live("tiles") if workloads.loops() else None}
    for row in (found["live"], found["live_torch"]):
        if row is not None:
            show("live", row)
    return found | {"cuda": _cuda(sizes, compare, tell, show)}


def _rows(
    setting: Setting,
    sizes: Sequence[int],
    backends: Sequence[str],
    compare: Sequence[str],
    peaks: Peaks | None,
    tell: Callable[[str], None],
    *,
    long: bool,
) -> Iterator[tuple[str, Figures]]:
    """Yield each row on the processor as soon as it is measured, with the kind of its table."""
    dense_max = 2 * DENSE_MAX if long else DENSE_MAX
    # The full mask at the longest takes twice the causal one, and minutes a round.
    cases = [(bars, mask) for bars in sizes for mask in MASKS]
    cases += [(LONG, mask) for mask in MASKS if long and mask != "full"]
    for bars, mask in cases:
        tell(f"{bars:,} bars, {mask}")
        row = _compare(setting, bars, mask, backends=backends, dense_max=dense_max)
        if peaks is not None and mask == "causal":
            row |= _peaks(peaks, bars, mask, dense=bars <= dense_max)
        yield "attention", row
    for bars, mask in cases:
        tell(f"{bars:,} bars, {mask}, other forms")
        of_causal = peaks if mask == "causal" else None
        for row in other_forms(setting, bars, mask, compare, peaks=of_causal):
            yield "forms", row
    for bars in sizes:
        tell(f"{bars:,} bars, other mechanisms")
        for row in _mechanisms(setting, bars, peaks):
            yield "mechanisms", row


def free_bytes() -> int:
    """Return the memory that can be taken without swapping."""
    pages: int = os.sysconf("SC_AVPHYS_PAGES")
    return pages * os.sysconf("SC_PAGE_SIZE")


def _compare(
    setting: Setting, bars: int, mask_name: str, *, backends: Sequence[str], dense_max: int
) -> Figures:
    mask = mask_named(mask_name)
    inputs = workloads.draw(setting, bars)
    sums = workloads.forward(inputs, mask)
    routes: dict[str, Route] = {
        "flash": lambda: workloads.forward(inputs, mask),
        "many": lambda: workloads.explain_many(inputs, sums, mask),
    }
    if bars <= EVERY_MAX:
        routes["every"] = lambda: workloads.explain_every(inputs, sums, mask)
    for backend in backends:
        name = {"auto": "ours", "tiles": "torch"}[backend]
        routes[name] = lambda chosen=backend: workloads.explain(inputs, sums, mask, chosen)  # type: ignore[misc]
    row: Figures = {"bars": bars, "mask": mask_name}
    row["flash_flops"] = workloads.forward_operations(setting, bars, mask)
    row["ours_flops"] = workloads.explained_operations(setting, bars, mask)
    clock = time.process_time if setting.device == "cpu" else time.perf_counter
    wait = workloads.waiter(setting.device)
    seconds = interleaved(routes, clock=clock, wait=wait)
    if bars <= dense_max:
        try:
            workloads.require_dense(setting, bars, available_bytes=free_bytes())
        except AttentionInvalid as refusal:
            row["dense_refused"] = str(refusal)
        else:
            # Once: it takes as long as all the others together.
            before = clock()
            workloads.dense(inputs, mask)
            wait()
            seconds["dense"] = clock() - before
    return row | _ratios(seconds, rows=min(bars, workloads.MANY_ROWS))


def _ratios(seconds: Mapping[str, float], *, rows: int) -> Figures:
    """Return each route's seconds, and what it costs beside the forward."""
    figures: Figures = {f"{name}_s": spent for name, spent in seconds.items()}
    for name in ("ours", "torch"):
        if name in seconds:
            figures[f"{name}_ratio"] = seconds[name] / seconds["flash"]
    figures["many_ratio_a_row"] = seconds["many"] / seconds["flash"] / rows
    if "every" in seconds:
        figures["every_ratio"] = 1.0 + seconds["every"] / seconds["flash"]
    if "dense" in seconds:
        figures["dense_ratio"] = seconds["dense"] / (seconds["flash"] + seconds["ours"])
    return figures


def _peaks(peaks: Peaks, bars: int, mask: str, *, dense: bool) -> Figures:
    """Return each route's peak memory, and the explanation's share beyond the forward's own."""
    flash, ours = (peaks.of(route, mask, bars) for route in ("flash", "ours"))
    found: Figures = {"flash_bytes": flash, "ours_bytes": ours}
    found["extra_memory_ratio"] = max(0, ours - flash) / max(flash, 1)
    if dense:
        found["dense_bytes"] = peaks.of("dense", mask, bars)
    return found


def _mechanisms(setting: Setting, bars: int, peaks: Peaks | None) -> Iterator[Figures]:
    """Measure each other mechanism beside the flash forward, causal, in the same rounds."""
    inputs = workloads.draw(setting, bars)
    made = {
        name: one.make(inputs)
        for name, one in MECHANISMS.items()
        if one.longest is None or bars <= one.longest
    }
    routes: dict[str, Route] = {"flash": partial(workloads.forward, inputs, Mask())}
    for name, one in made.items():
        routes |= {f"{name} forward": one.forward, f"{name} explain": one.explain}
    operations: dict[str, int] = {}
    spent = interleaved(
        routes,
        warm_up=lambda name, route: operations.update({name: workloads.counted(route)}),
    )
    for name, one in made.items():
        forward, explain = spent[f"{name} forward"], spent[f"{name} explain"]
        row: Figures = {"bars": bars, "mechanism": name, "forward_s": forward}
        row |= {"forward_ratio": forward / spent["flash"], "explain_ratio": explain / forward}
        row["flops"] = operations[f"{name} forward"]
        if peaks is not None:
            row["bytes"] = peaks.of(name, "causal", bars)
        if isinstance(one, Linear):
            row["distance"] = one.distance()
        yield row


def _live(backend: str) -> Figures:
    """Measure the default network's live step and its chunked scan, each with its plain form."""
    live = workloads.Live(backend=backend)
    spent: dict[str, list[float]] = {
        name: [] for name in ("step", "plain", "scan", "plain_scan", "forward")
    }

    def timed(name: str, bars: int, *, explained: bool) -> None:
        before = time.process_time()
        live.advance(bars, explained=explained)
        spent[name].append(time.process_time() - before)

    def timed_forward() -> None:
        before = time.process_time()
        live.forward(_BATCH_BARS)
        spent["forward"].append(time.process_time() - before)

    for _ in range(_STEPS):
        timed("step", 1, explained=True)
        timed("plain", 1, explained=False)
        live.move(1)
    for _ in range(_SCANS):
        timed("scan", CHUNK_BARS, explained=True)
        timed("plain_scan", CHUNK_BARS, explained=False)
        live.move(CHUNK_BARS)
        timed_forward()
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    return {
        "backend": live.backend,
        "step_s": median["step"],
        "step_p99_s": statistics.quantiles(spent["step"], n=100)[-1],
        "plain_step_s": median["plain"],
        "step_ratio": median["step"] / median["plain"],
        "scan_s_a_bar": median["scan"] / CHUNK_BARS,
        "plain_scan_s_a_bar": median["plain_scan"] / CHUNK_BARS,
        "scan_ratio": median["scan"] / median["plain_scan"],
        "forward_s_a_bar": median["forward"] / _BATCH_BARS,
        "scan_ratio_to_forward": median["scan"] / CHUNK_BARS / (median["forward"] / _BATCH_BARS),
    }


def _cuda(
    sizes: Sequence[int],
    compare: Sequence[str],
    tell: Callable[[str], None],
    show: Callable[[str, Figures], None],
) -> Figures | None:
    """Measure the same on a CUDA device, beside its matrix peak; None where there is none."""
    if (name := workloads.device_name("cuda")) is None:
        return None
    setting = workloads.Setting(heads=2, head_dim=64, device="cuda", dtype="bfloat16")
    product, operations = workloads.matrix_product(setting, _MATRIX_SIDE)
    wait = workloads.waiter("cuda")
    seconds = interleaved({"product": product}, clock=time.perf_counter, wait=wait)["product"]
    tflops = operations / seconds / 1e12
    found: Figures = {"device": name, "matrix_tflops": tflops, "attention": [], "forms": []}
    device = {"device": f"{name}, matrix product {tflops:.0f} TFLOP/s"}
    cases = [(bars, mask) for bars in sizes for mask in MASKS]
    for bars, mask in cases:
        tell(f"{name}: {bars:,} bars, {mask}")
        row = _compare(setting, bars, mask, backends=("auto",), dense_max=DENSE_MAX)
        row["flash_tflops"] = row["flash_flops"] / row["flash_s"] / 1e12
        row |= workloads.device_peaks(setting, bars, mask_named(mask))
        found["attention"].append(row)
        show("attention", row | device)
    for bars, mask in cases:
        for row in other_forms(setting, bars, mask, compare):
            found["forms"].append(row)
            show("forms", row | device)
    return found


def _machine(threads: int) -> Figures:
    return {
        "line": machine_line(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
    }


_MIB: Final = 1 << 20
_ROUTES: Final = {
    "flash": "flash forward",
    "ours": "explanation",
    "torch": "explanation, torch alone",
    "dense": "stored matrices",
}


class _Panel(NamedTuple):
    suffix: str
    label: str
    unit: float


_PANELS: Final = (
    _Panel("s", "CPU seconds", 1.0),
    _Panel("bytes", "peak memory, MiB", 1.0 / _MIB),
)


class _Column(NamedTuple):
    heading: str
    text: Callable[[Figures], str]


class _Table(NamedTuple):
    title: str
    columns: Sequence[_Column]
    lines: Callable[[Figures], Sequence[Figures]] = lambda row: (row,)


class Printer:
    """Prints each row as soon as it is measured, a title and headings above the first."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._title = ""

    def __call__(self, kind: str, row: Figures) -> None:
        """Print *row* of the table *kind*, of the device that it names."""
        table = _TABLES[kind]
        title = f"{table.title}, {row['device']}" if "device" in row else table.title
        if title != self._title:
            self._title = title
            self._say(f"\n{title}")
            self._say("  ".join(f"{column.heading:>{_width(column)}}" for column in table.columns))
        for line in table.lines(row):
            cells = (f"{column.text(line):>{_width(column)}}" for column in table.columns)
            self._say("  ".join(cells))


def _width(column: _Column) -> int:
    return max(len(column.heading), _WIDTHS.get(column.heading, 7))


def _live_lines(live: Figures) -> list[Figures]:
    attends = live["backend"]
    return [
        {"": f"{name}, {attends}", "plain": live[plain], "own": live[own], "ratio": live[ratio]}
        for name, plain, own, ratio in (
            ("a live step", "plain_step_s", "step_s", "step_ratio"),
            ("a bar of a scan", "plain_scan_s_a_bar", "scan_s_a_bar", "scan_ratio"),
            ("beside a batch", "forward_s_a_bar", "scan_s_a_bar", "scan_ratio_to_forward"),
        )
    ]


def _of(name: str, form: str, unit: float = 1.0) -> Callable[[Figures], str]:
    """Write a figure in *unit*, a dash where a row lacks it."""
    return lambda row: format(row[name] * unit, form) if name in row else "-"


_BARS: Final = _Column("bars", lambda row: f"{row['bars']:,}")
_MASK: Final = _Column("mask", lambda row: row["mask"])
_WIDTHS: Final = {"mask": 12, "route": 12, "mechanism": 44, "": 32}
_TABLES: Final = {
    "attention": _Table(
        "an explanation beside the flash forward",
        (
            _BARS,
            _MASK,
            _Column("flash ms", _of("flash_s", ",.1f", 1e3)),
            _Column("explain ms", _of("ours_s", ",.1f", 1e3)),
            _Column("÷ flash", _of("ours_ratio", ".2f")),
            _Column("torch ÷ flash", _of("torch_ratio", ".2f")),
            _Column("every bar ÷ flash", _of("every_ratio", ".2f")),
            _Column("a row of 256 ÷ flash", _of("many_ratio_a_row", ".4f")),
            _Column("dense ÷ ours", _of("dense_ratio", ".1f")),
            _Column("GFLOP", _of("flash_flops", ",.1f", 1e-9)),
            _Column("+ explain", _of("ours_flops", ",.1f", 1e-9)),
            _Column("flash MiB", _of("flash_bytes", ",.0f", 1 / _MIB)),
            _Column("+ explain", _of("extra_memory_ratio", ".2f")),
            _Column("dense MiB", _of("dense_bytes", ",.0f", 1 / _MIB)),
        ),
    ),
    "forms": _Table(
        "other forms",
        (
            _BARS,
            _MASK,
            _Column("route", lambda row: row["route"]),
            _Column("ms", _of("s", ",.1f", 1e3)),
            _Column("÷ flash", _of("ratio", ".2f")),
            _Column("MiB", _of("bytes", ",.0f", 1 / _MIB)),
            _Column("GFLOP", _of("flops", ",.2f", 1e-9)),
            _Column("GFLOP/s", lambda row: f"{row['flops'] / row['s'] / 1e9:,.1f}"),
        ),
    ),
    "mechanisms": _Table(
        "other mechanisms, causal",
        (
            _BARS,
            _Column("mechanism", lambda row: row["mechanism"]),
            _Column("forward ms", _of("forward_s", ",.1f", 1e3)),
            _Column("÷ flash", _of("forward_ratio", ".2f")),
            _Column("explain ÷ forward", _of("explain_ratio", ".2f")),
            _Column("MiB", _of("bytes", ",.0f", 1 / _MIB)),
            _Column("GFLOP", _of("flops", ",.2f", 1e-9)),
            _Column("from softmax", _of("distance", ".2f")),
        ),
    ),
    "live": _Table(
        "the default network, live and over known bars",
        (
            _Column("", lambda row: row[""]),
            _Column("plain µs", _of("plain", ",.0f", 1e6)),
            _Column("explained µs", _of("own", ",.0f", 1e6)),
            _Column("explained ÷ plain", _of("ratio", ".2f")),
        ),
        _live_lines,
    ),
}
"""The tables by the kinds of rows that ``attention.measure`` shows."""


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Write time and memory over the number of bars, causal, to *path* as PNG."""
    figure_class = import_module("matplotlib.figure").Figure
    rows = [row for row in figures["attention"] if row["mask"] == "causal"]
    panels = [panel for panel in _PANELS if any(f"flash_{panel.suffix}" in row for row in rows)]
    figure = figure_class(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for route, name in _ROUTES.items():
            known = [row for row in rows if f"{route}_{panel.suffix}" in row]
            if known:
                values = [row[f"{route}_{panel.suffix}"] * panel.unit for row in known]
                axes.plot([row["bars"] for row in known], values, marker="o", label=name)
        axes.set(xscale="log", yscale="log", xlabel="bars, causal", ylabel=panel.label)
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    figure.suptitle(_title(figures))
    figure.savefig(path, format="png", dpi=120)


def _title(figures: Mapping[str, Any]) -> str:
    setting, machine = figures["setting"], figures["machine"]
    return (
        f"{setting['layers']} layers of {setting['heads']} heads of {setting['head_dim']}, "
        f"{machine['threads']} thread(s), torch {machine['torch']} {machine['simd']}"
    )
