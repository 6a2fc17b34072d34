"""Shows the figures of ``bench attention``: rows as they are measured, a plot as PNG."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Figures = dict[str, Any]
_MIB: Final = 1 << 20
_ROUTES: Final = {
    "flash": "flash forward",
    "ours": "explanation",
    "torch": "explanation, torch alone",
    "compiled": "explanation, compiled",
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
    """Return the text of a figure in *unit*, a dash where a row lacks it."""
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
