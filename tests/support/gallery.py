"""A document with every kind of part, and a chart for each kind of layer and palette."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from tracepaper.replay.document.charts import (
    BandLayer,
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    EdgeLayer,
    FlowLayer,
    HeatLayer,
    LineLayer,
    MarkLayer,
    RuleLayer,
    category_axis,
    packed,
    time_axis,
)
from tracepaper.replay.document.values import (
    PAIR,
    FoldedParts,
    Form,
    Look,
    Paragraph,
    Part,
    Table,
    of_row,
    table,
    table_of,
)

EVIL: Final = '<img src=x onerror="alert(1)">'
TIMES: Final = [1_748_736_000_000 + 3_600_000 * hour for hour in range(48)]
WAVE: Final = [round(float(np.sin(hour / 6)), 3) for hour in range(48)]
GATES: Final = ["shifted", "confidence_entropy"]


def chart_of(title: str, *panels: ChartPanel, columns: int = 1, is_aligned: bool = False) -> Chart:
    return Chart(title, f"The caption of {title}.", panels, columns, is_aligned)


def looks() -> list[Table]:
    """Return a table of each look that finds its figures by key."""
    gates: dict[str, Form] = {
        "gate": "text", "meaning": "text", "unit": "text", "measure": "exact", "bound": "text",
        "threshold": "exact", "share": "measure", "passed": "mark", "drawn": "mark",
    }  # fmt: skip
    judged = [
        ("shifted", "it moved", "", "3", "≤", "2", -0.5, False, True),
        ("finite", "is finite", "", "yes", "≥", "yes", None, True, False),
    ]
    tables: dict[Look, Table] = {
        "gauges": table_of("g", "Gauges", gates, judged),
        "stack": table_of("s", "Stack", {"name": "text", "share": "exact", "bar": "bar"},
                          [("down", "40 %", 0.4), ("up", "60 %", 0.6)], ["-3.2 bp"]),
        "columns": table_of("c", "Columns", {"from": "minute", "weight": "measure"},
                            [(TIMES[1], 0.6), (TIMES[0], 0.3), ("older", 0.1)], ["half of it"]),
        "balance": replace(table_of("b", "Balance", {"feature": "text", "added": "points"},
                                    [("range", -1e-4), ("hour", 5e-5)]), shown=1),
        "timeline": table_of("t", "Timeline", {"time": "second", "event": "text"},
                             [(TIMES[0], "buy 0.1"), (None, EVIL)]),
        "pairs": table_of("p", "Pairs", PAIR, [("held", "0.1")]),
    }  # fmt: skip
    return [replace(drawn, look=look) for look, drawn in tables.items()]


def gallery() -> list[Part]:
    """Return a part of each kind, and a chart for each kind of layer and palette."""
    line = LineLayer("own", TIMES, [*WAVE[:10], None, *WAVE[11:]])
    band = BandLayer(
        "band", TIMES, [value - 0.2 for value in WAVE], [value + 0.2 for value in WAVE]
    )
    marks = MarkLayer("entry", TIMES[5:6], WAVE[5:6], "up", texts=["trend up"])
    flags = HeatLayer("refused", TIMES, range(2), 0.0, 3.0, [[1.0] * 48, [3.0] * 48], digits=0)
    bars = BarLayer("added", [0.5, -0.25], range(2), ("gain", "loss"))
    judged = MarkLayer("judged", [1.0, -2.0], range(2), texts=["saved", "cost"], errors=[0.5, 0.5])
    grid = np.linspace(-3.0, 0.0, 48 * 20).reshape(20, 48)
    grid[0, 0] = np.nan
    map_ = HeatLayer("a bar", TIMES, list(range(20)), -3.0, 0.0, packed=packed(grid, -3.0, 0.0),
                     scale="log10", unit=" %", times=100.0, digits=2)  # fmt: skip
    sweep = HeatLayer("sharpe", range(2), range(2), -1.0, 1.0, [[-1.0, 0.1], [None, 1.0]],
                      is_written=True)  # fmt: skip
    shares = np.full((2, 3, 4, 8), 1_250).tolist()
    flow = FlowLayer(["decision", "bars"], ["0–15", "16–63"], [[1.0, 0.0], [0.25, 0.75]],
                     [[[0.25, 0.75], [0.0, 0.0]]])  # fmt: skip
    columns = [of_row(key, key, "gain") for key in ("name", "end", "fees")]
    gates = category_axis(GATES)
    fast, slow = category_axis(["5", "10"], "fast"), category_axis(["20", "40"])
    return [
        Paragraph(EVIL, "lead"),
        table("tiles", "", columns, [{"name": 1.0, "end": -2.0, "fees": 3.0}]),
        Paragraph("Money", "heading"),
        chart_of("Equity", ChartPanel([band, line, RuleLayer(0.0)], time_axis(), ChartAxis("%")),
                 ChartPanel([line, marks], time_axis()),
                 ChartPanel([flags], time_axis(), category_axis(GATES, is_reversed=True), 60),
                 is_aligned=True),
        Paragraph("Gates", "heading"),
        chart_of("Bars", ChartPanel([bars, RuleLayer(0.0, "x")], ChartAxis("bp"), gates)),
        chart_of("Judged", ChartPanel([judged], ChartAxis("bp", unit=" bp"), gates)),
        Paragraph("Maps", "heading"),
        chart_of("Map", ChartPanel([map_], time_axis(), ChartAxis("age"))),
        chart_of("Sweep", ChartPanel([sweep], fast, slow, 80)),
        chart_of("Two", *[ChartPanel([line], time_axis(), title=side) for side in "ab"], columns=2),
        chart_of("Edges", ChartPanel([EdgeLayer(list(range(8)), 11, 10_000, TIMES[:4], shares)])),
        chart_of("Flow", ChartPanel([flow])),
        FoldedParts("a trade", (Paragraph("because"),)),
        table_of("t", "Rows", {"name": "text", "n": "count", "day": "gain tint", "bar": "bar"},
                 [["b", 2, 0.1, 0.5], ["a", 10, -0.2, 1.0], [EVIL, None, None, None]]),
        table_of("e", "Exact", {"x": "exact"}, [["-3 %"], ["+10.5 %"], [""], ["1,200"], ["0.2"]]),
        Paragraph("tracepaper verify last", "code"),
        Paragraph("The numbers behind it.", "detail"),
        *looks(),
        Paragraph("one", "item"),
        Paragraph("two", "item"),
    ]  # fmt: skip
