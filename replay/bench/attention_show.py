"""Shows the figures of ``bench attention``: a table for the terminal, a plot as PNG."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.console import Group
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import RenderableType

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


def render(figures: Mapping[str, Any]) -> RenderableType:
    """Return the figures as tables."""
    parts: list[RenderableType] = [
        _attention_table(figures["attention"], _title(figures)),
        *_forms_tables(figures["forms"], "other forms, CPU time"),
        _mechanisms_table(figures["mechanisms"]),
        *(_live_table(live) for live in (figures["live"], figures["live_torch"]) if live),
    ]
    if (cuda := figures["cuda"]) is not None:
        title = f"{cuda['device']}, matrix product {cuda['matrix_tflops']:.0f} TFLOP/s"
        parts.append(_attention_table(cuda["attention"], title))
        parts += _forms_tables(cuda["forms"], f"other forms, {cuda['device']}")
    return Group(*parts)


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


def _mechanisms_table(rows: Sequence[Figures]) -> Table:
    table = Table(title="other mechanisms, causal")
    for name in ("bars", "mechanism", "forward ms", "÷ flash", "explain ÷ forward"):
        table.add_column(name, justify="right")
    for name in ("MiB", "GFLOP", "from softmax"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['bars']:,}",
            row["mechanism"],
            f"{row['forward_s'] * 1e3:,.1f}",
            f"{row['forward_ratio']:.2f}",
            f"{row['explain_ratio']:.2f}",
            _mebibytes(row, "bytes"),
            f"{row['flops'] / 1e9:,.2f}",
            _number(row, "distance", ".2f"),
        )
    return table


def _attention_table(rows: Sequence[Figures], title: str) -> Table:
    table = Table(title=title)
    for name in ("bars", "mask", "flash ms", "explain ms", "÷ flash", "torch ÷ flash"):
        table.add_column(name, justify="right")
    for name in (
        "with every bar ÷ flash",
        "a row of 256 ÷ flash",
        "dense ÷ ours",
        "GFLOP",
        "+ explain",
        "flash MiB",
        "+ explain",
        "dense MiB",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['bars']:,}",
            row["mask"],
            f"{row['flash_s'] * 1e3:,.1f}",
            f"{row['ours_s'] * 1e3:,.1f}",
            _number(row, "ours_ratio", ".2f"),
            _number(row, "torch_ratio", ".2f"),
            _number(row, "every_ratio", ".2f"),
            _number(row, "many_ratio_a_row", ".4f"),
            _number(row, "dense_ratio", ".1f"),
            f"{row['flash_flops'] / 1e9:,.1f}",
            f"{row['ours_flops'] / 1e9:,.1f}",
            _mebibytes(row, "flash_bytes"),
            _number(row, "extra_memory_ratio", ".2f"),
            _mebibytes(row, "dense_bytes"),
        )
    return table


def _forms_tables(rows: Sequence[Figures], title: str) -> list[RenderableType]:
    """Return a table of the other forms and of what was compared; none where nothing was."""
    table = Table(title=title)
    for name in ("bars", "mask", "route", "ms", "÷ flash", "MiB", "GFLOP", "GFLOP/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['bars']:,}",
            row["mask"],
            row["route"],
            f"{row['s'] * 1e3:,.1f}",
            _number(row, "ratio", ".2f"),
            _mebibytes(row, "bytes"),
            f"{row['flops'] / 1e9:,.2f}",
            f"{row['flops'] / row['s'] / 1e9:,.1f}",
        )
    return [table] if rows else []


def _live_table(live: Figures) -> Table:
    attends = f"attending by {live['backend']}"
    table = Table(title=f"the default network, live and over known bars, {attends}")
    for name in ("", "plain µs", "explained µs", "explained ÷ plain"):
        table.add_column(name, justify="right")
    for name, plain, explained, ratio in (
        ("a live step", "plain_step_s", "step_s", "step_ratio"),
        ("a bar of a scan", "plain_scan_s_a_bar", "scan_s_a_bar", "scan_ratio"),
        (
            "the same beside a batched forward",
            "forward_s_a_bar",
            "scan_s_a_bar",
            "scan_ratio_to_forward",
        ),
    ):
        table.add_row(
            name,
            f"{live[plain] * 1e6:,.0f}",
            f"{live[explained] * 1e6:,.0f}",
            f"{live[ratio]:.2f}",
        )
    return table


def _number(row: Figures, name: str, form: str) -> str:
    return format(row[name], form) if name in row else "-"


def _mebibytes(row: Figures, name: str) -> str:
    return f"{row[name] / _MIB:,.0f}" if name in row else "-"
