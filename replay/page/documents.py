"""Places of the page that are documents."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from tracepaper.daemon.engine.state import RESERVE, reserve_of
from tracepaper.replay.checks.identity import counts
from tracepaper.replay.document.charts import OWN_LINE, WHOLE_LINE, LineLayer, rounded
from tracepaper.replay.document.values import (
    Figure,
    Form,
    Paragraph,
    Part,
    TitledParts,
    of_field,
    table,
    table_of,
    written,
)
from tracepaper.replay.page import answers, runs
from tracepaper.replay.page.databases import ShownRun
from tracepaper.replay.page.rollups import OWN
from tracepaper.replay.report import charts
from tracepaper.replay.report.figures import shortfall_tables
from tracepaper.replay.run_columns import Floats

POINTS: Final = 1_500
"""Cells of a chart."""
ACCOUNTS: Final = (
    of_field("account", "account", "text", "title"),
    of_field("equity", "equity", "money"),
    Figure[answers.AccountFigures](
        "return",
        "return",
        "gain percent",
        lambda of: None if of.name == RESERVE else of.total_return,
    ),
    of_field("realized", "realized", "gain"),
    of_field("unrealized", "unrealized", "gain"),
    of_field("fees", "fees", "money"),
    of_field("funding", "funding", "money"),
    of_field("fills", "fills", "count"),
    of_field("mean_exposure", "mean exposure", "percent"),
)
POSITIONS: Final = (
    of_field("instrument", "symbol", "text"),
    of_field("side", "side", "text"),
    of_field("quantity", "quantity", "exact", "quantity_text"),
    of_field("average_price", "average price", "exact", "average_price_text"),
    of_field("unrealized", "unrealized", "gain"),
    of_field("margin", "margin", "money"),
    of_field("liquidation_price", "liquidation at", "measure"),
)


def account(shown: ShownRun) -> TitledParts:
    """Return the run's accounts, their curves, what is held, and a trader's own fills."""
    return TitledParts("Account", tuple(_account(shown)))


def _account(shown: ShownRun) -> Iterator[Part]:
    figures = runs.accounts(shown)
    stored = [of for of in figures if of.is_stored]
    rows = [*stored, *_reserve(stored), *(of for of in figures if not of.is_stored)]
    sources = "; ".join(f"{of.title}: {of.source}" for of in figures) + "."
    yield table("accounts", "", ACCOUNTS, rows, notes=(sources,) if figures else ())
    yield from _curves(shown, figures)
    yield Paragraph("Positions", "heading")
    if held := [position for position in runs.holdings(shown) if position.side != "FLAT"]:
        yield table("positions", "", POSITIONS, held)
    else:
        yield Paragraph("Flat: nothing is held.", "note")
    yield from shortfall_tables(shown.views.rows("v_shortfall"))


def _reserve(stored: list[answers.AccountFigures]) -> Iterator[answers.AccountFigures]:
    """Yield the money that no strategy has a share of, where there is some."""
    equity, *parts = (Decimal(of.equity) for of in stored)
    left = reserve_of(equity, {of.name: part for of, part in zip(stored[1:], parts, strict=True)})
    if round(left, 2):
        yield answers.AccountFigures(RESERVE, RESERVE, "", 0.0, float(left), 0.0)


def _curves(shown: ShownRun, figures: list[answers.AccountFigures]) -> Iterator[Part]:
    """Yield the chart of all accounts since their starts."""
    columns = runs.equity(shown, None, None, POINTS)
    if not columns.time_ms:
        yield Paragraph("No bar yet.", "note")
        return
    curves = []
    for of in figures:
        if of.name not in columns.equity:
            continue
        equity = np.array(columns.equity[of.name], dtype=np.float64)
        low = np.array(columns.low.get(of.name, columns.equity[of.name]), dtype=np.float64)
        curves.append(
            charts.AccountCurve(
                LineLayer(of.title, (), (), of.tone, of.width, of.dash),
                equity / of.start - 1,
                _lost(equity, np.minimum(low, equity)),
            )
        )
    name, net = "exposure, held value ÷ equity", columns.net_exposure
    held = [LineLayer(name, columns.time_ms, _percent(columns.exposure), "ink", 1.0)]
    if net is not None:
        held = [replace(held[0], name="gross exposure, both sides ÷ equity")]
        name = "net exposure, long less short"
        held.append(LineLayer(name, columns.time_ms, _percent(net), "shadow-1", 1.0, "dash"))
    yield Paragraph("Equity", "heading")
    chart = charts.accounts_chart(np.array(columns.time_ms, dtype=np.int64), curves, held)
    yield replace(chart, title="")


def _percent(shares: list[float]) -> list[float | None]:
    return rounded(100 * np.array(shares, dtype=np.float64))


def _lost(equity: Floats, least: Floats) -> Floats:
    """Return the share that each cell's *least* is under the highest *equity* before it."""
    peak = np.maximum.accumulate(np.concatenate([equity[:1], equity[:-1]]))
    lost: Floats = np.where(peak > 0, np.maximum(1 - least / peak, 0.0), 0.0)
    return lost


# ---------------------------------------------------------------- two runs

_NUMBERS: Final = ("confidence", "mean_return", "stdev_return", "p_up", "p_down", "shift")
_FIELDS: Final = (
    *("action", "target_quantity", "allowed", "refused_by", "reason", "unfilled_reason", "regime"),
    *_NUMBERS,
)
"""What two decisions are compared by, the weightiest first."""
_DONE: Final = 2
"""So many of them say what was done; what follows says why."""
_GATES: Final = "gates"
"""Stands for a difference in nothing but the gates' measures and thresholds."""
DIFFERENCES_MAX: Final = 1_000
FIELDS_NAMED: Final = 4
_TIME_BITS: Final = 44  # of an open time within the key of a decision
_Differing = tuple[int, int, str, npt.NDArray[np.bool_], int, int]
"""Its weight, its bar's open, instrument, in which fields, and both sequences."""


def compare(left: ShownRun, right: ShownRun) -> TitledParts:
    """Return where two runs decided the same bars differently."""
    both = [run.columns.decisions(("target_quantity", *_NUMBERS)) for run in (left, right)]
    names = np.unique(np.concatenate([columns["instrument"] for columns in both]))
    left_keys, right_keys = (
        (np.searchsorted(names, columns["instrument"]) << _TIME_BITS)
        + columns["open_time_ms"].astype(np.int64)
        for columns in both
    )
    _, *places = np.intersect1d(left_keys, right_keys, return_indices=True)
    first, second = (
        {name: column[at] for name, column in columns.items()}
        for columns, at in zip(both, places, strict=True)
    )
    sequences = first["sequence"].tolist(), second["sequence"].tolist()
    gates = _judged(left), _judged(right)
    judged = [gates[0].get(old) != gates[1].get(new) for old, new in zip(*sequences, strict=True)]
    differs = np.stack([_differs(first[field], second[field]) for field in _FIELDS], 1)
    others = np.array(judged, dtype=bool) & ~differs.any(axis=1)
    differs = np.column_stack([differs, others])
    counts = dict(zip((*_FIELDS, _GATES), differs.sum(axis=0).tolist(), strict=True))
    differing: list[_Differing] = [
        (min(int(differs[place].argmax()), _DONE), int(first["open_time_ms"][place]),
         str(first["instrument"][place]), differs[place],
         sequences[0][place], sequences[1][place])
        for place in np.flatnonzero(differs.any(axis=1)).tolist()
    ]  # fmt: skip
    differing.sort(key=itemgetter(0, 1, 2))
    common = len(judged)
    return TitledParts("Compare", tuple(_compared(left, right, common, differing, counts)))


def _compared(
    left: ShownRun,
    right: ShownRun,
    common: int,
    differing: list[_Differing],
    counts: dict[str, int],
) -> Iterator[Part]:
    """Yield how many of the *common* decisions differ, the equity of both, and which they are."""
    earned = [written(runs.run_row(run).total_return, "gain percent") for run in (left, right)]
    yield Paragraph(
        f"{common - len(differing):,} of {common:,} common decisions are the same; "
        f"{' beside '.join(earned)}.",
        "strong",
    )
    if not common:
        yield Paragraph(
            "The two runs decided no bar in common: they lie in other times, or one goes on where "
            "the other ended.",
            "note",
        )
        return
    named = [f"{_named(field)} {count:,}" for field, count in counts.items() if count]
    yield Paragraph(
        f"Differing, in so many decisions: {', '.join(named)}."
        if named
        else "Every common decision is the same to the bit.",
        "note",
    )
    yield Paragraph("Equity", "heading")
    yield _both(left, right)
    if differing:
        rows = [
            (first, second, at_ms, instrument.partition(":")[2], _fields(list(counts), differs))
            for _, at_ms, instrument, differs, first, second in differing
        ]
        forms: dict[str, Form] = {
            "decision": "step", "beside": "text", "bar": "minute", "symbol": "text",
            "what differs": "text",
        }  # fmt: skip
        title = f"Decisions that differ: {len(differing):,}"
        yield table_of("differing", title, forms, rows[:DIFFERENCES_MAX])


def _named(field: str) -> str:
    return field.replace("_", " ")


def _fields(names: list[str], differs: npt.NDArray[np.bool_]) -> str:
    """Name the first fields in which a decision differs."""
    several = [_named(name) for name, is_other in zip(names, differs, strict=True) if is_other]
    rest = len(several) - FIELDS_NAMED
    return ", ".join(several[:FIELDS_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _both(left: ShownRun, right: ShownRun) -> Part:
    """Draw the equity of both runs over the times of both."""
    columns = [runs.equity(run, None, None, POINTS) for run in (left, right)]
    times = np.unique(np.concatenate([np.array(of.time_ms, dtype=np.int64) for of in columns]))
    curves, held = [], []
    for run, of, line in zip((left, right), columns, (OWN_LINE, WHOLE_LINE), strict=True):
        at = np.searchsorted(times, np.array(of.time_ms, dtype=np.int64))
        equity, share = np.full((2, times.size), np.nan)
        equity[at], share[at] = of.equity[OWN], of.exposure
        name = f"{run.views.run()['strategy'].rpartition(':')[2]} {run.run_id[:8]}"
        start = runs.accounts(run)[0].start
        peak = np.fmax.accumulate(equity)
        drawn = replace(line, name=name)
        curves.append(charts.AccountCurve(drawn, equity / start - 1, 1 - equity / peak))
        held.append(replace(drawn, x=times.tolist(), y=rounded(100 * share), width=1.0))
    return replace(charts.accounts_chart(times, curves, held), title="")


def _judged(shown: ShownRun) -> dict[int, list[tuple[Any, ...]]]:
    """Read gate, measure and threshold of every gate that counts, by the decision's sequence."""
    judged: dict[int, list[tuple[Any, ...]]] = {}
    for batch in shown.views.batches("v_gates", ("sequence", "gate", "measure", "threshold")):
        for sequence, gate, *measured in zip(*batch, strict=True):
            if counts(gate):
                judged.setdefault(sequence, []).append((gate, *measured))
    return judged


def _differs(left: Any, right: Any) -> npt.NDArray[np.bool_]:  # noqa: ANN401 - any column
    """Return where two columns differ; two unknown numbers do not."""
    differs: npt.NDArray[np.bool_] = left != right
    return differs & ~(np.isnan(left) & np.isnan(right)) if left.dtype.kind == "f" else differs
