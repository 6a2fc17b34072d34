"""The panels of the live view, each a pure function."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from rich.box import ROUNDED
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tracepaper.daemon.broker.rules import MarginRules, MarginUse
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.build import margin_rules
from tracepaper.strategies.gates.declared import operator, risk_halt
from tracepaper.strategies.gates.gate import GATES, measured, verdict
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    Forecast,
    PredictionTimeout,
    Run,
    Step,
)
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS,
    Bar,
    Command,
    CommandKind,
    Instrument,
    ModelChange,
)
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_SCALE, NOTHING, scaled, unscaled

BLOCKS: Final = "▁▂▃▄▅▆▇█"
BAR_CELLS: Final = 30
PANELS_MAX: Final = 4
NARROW: Final = 80
"""Columns of a terminal below which the header leaves out the counts."""
CLOSES_KEPT: Final = 60
ACTION_STYLES: Final = {
    Action.LONG: "bold green",
    Action.SHORT: "bold red",
    Action.FLAT: "bold",
    Action.HOLD: "dim",
}
_HALTING: Final = frozenset({operator.name, risk_halt.name})
DOWN, FLAT, UP = "red", "bright_black", "green"


@dataclass(slots=True)
class ScreenState:
    """The data of the screen; the live view keeps it up to date."""

    run: Run | None = None
    cash: int = 0  # money at the start of the account; 0 while unknown
    horizon: int = 0  # of the forecast that is shown, in bars
    last: Step | None = None
    instruments: Mapping[str, Instrument] = field(default_factory=dict)
    bars: dict[str, Step] = field(default_factory=dict)
    closes: dict[str, deque[int]] = field(default_factory=dict)
    decisions: int = 0
    warming: int = 0
    fills: int = 0
    bars_per_s: float = 0.0
    margin: Mapping[str, MarginRules] = field(default_factory=dict)  # where it trades on margin
    model_id: str = ""  # of the model that decides now
    halted_by: str = ""  # the gate that allows no new exposure until RESUME

    def open(self, run: Run) -> None:
        """Remember *run*; its stored configuration names the starting cash and the horizon."""
        config = restore(run.config)
        self.run, self.model_id = run, run.model_id
        self.cash = scaled(config.account.cash, MONEY_DECIMALS, name="[account] cash")
        self.horizon = config.gate.horizon
        self.margin = margin_rules(config, run.instruments)

    def observe(self, step: Step, instruments: Mapping[str, Instrument]) -> None:
        """Take in *step*."""
        self.last = step
        self.instruments = instruments
        self.fills += len(step.fills)
        if isinstance(step.event, ModelChange):
            self.model_id = step.event.model_id
        if isinstance(step.event, Command):
            is_resumed = step.event.kind is CommandKind.RESUME
            self.halted_by = "" if is_resumed else operator.name
        elif step.decision is not None and step.decision.refused_by in _HALTING:
            self.halted_by = step.decision.refused_by or ""
        if isinstance(step.event, Bar) and step.accepted:
            instrument = step.event.instrument
            self.bars[instrument] = step
            self.decisions += step.decision is not None
            self.warming += step.decision is None
            closes = self.closes.setdefault(instrument, deque(maxlen=CLOSES_KEPT))
            closes.append(step.event.close)


@dataclass(frozen=True)
class _Fitted:
    """The screen, fitted to the terminal: it drops the passed gates first, then instruments."""

    state: ScreenState

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = _screen(self.state, options.max_width, PANELS_MAX)
        for panels in range(PANELS_MAX, 0, -1) if options.is_terminal else ():
            # A live view is cut at its end, where position and equity stand.
            if len(console.render_lines(whole, options)) <= options.size.height:
                break
            whole = _screen(self.state, options.max_width, panels, is_short=True)
        yield whole


def screen(state: ScreenState) -> RenderableType:
    """Return the whole screen: one panel an instrument, and the account below.

    On a terminal that is too low for it, gates that passed are counted alone, and fewer instruments
    have a panel.
    """
    return _Fitted(state)


def _screen(
    state: ScreenState, width: int, panels: int, *, is_short: bool = False
) -> RenderableType:
    shown = list(state.bars.items())[:panels]
    parts: list[RenderableType] = [
        _panel(state, name, step, is_short=is_short) for name, step in shown
    ]
    if len(state.bars) > len(shown):
        parts.append(Text(f"  and {len(state.bars) - len(shown)} more instruments", "dim"))
    if not shown:
        parts.append(Text("  waiting for the first closed bar", "dim"))
    return Group(_header(state, width), *parts, _footer(state))


def _header(state: ScreenState, width: int) -> RenderableType:
    """Return one line; where it is too long, an ellipsis cuts the run's id first."""
    counts = f"{state.bars_per_s:,.1f} bars/s "
    if width >= NARROW:
        counts = f"decisions {state.decisions:,}  fills {state.fills:,}  {counts}"
    name = Text.assemble((" tracepaper", "bold"))
    if state.run is not None:
        name.append(f"  {state.run.kind.value}", "cyan")
    if state.halted_by:
        name.append(f"  halted by {state.halted_by}", "bold yellow")
    if (run := state.run) is not None:
        name.append(f"  {run.strategy} {state.model_id}".rstrip())
        name.append(f"  run {run.run_id}", "dim")
    name.truncate(max(width - len(counts) - 1, 0), overflow="ellipsis", pad=True)
    return Text.assemble(name, " ", (counts, "dim"), no_wrap=True, overflow="ellipsis")


def _panel(state: ScreenState, name: str, step: Step, *, is_short: bool) -> RenderableType:
    bar, instrument = step.event, state.instruments[name]
    assert isinstance(bar, Bar)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", width=10)
    grid.add_column()
    price = f"{bar.close / 10**instrument.price_decimals:,.{instrument.price_decimals}f}"
    grid.add_row(
        "price", Text.assemble((price, "bold"), "  ", (sparkline(state.closes[name]), "cyan"))
    )
    for title, line in _prediction(step, state.horizon):
        grid.add_row(title, line)
    if step.decision is not None:
        grid.add_row("decision", _decision(step.decision))
        grid.add_row("gates", _gates(step.decision, is_short=is_short))
        grid.add_row("position", _position(step, instrument))
        if (rules := state.margin.get(name)) and (used := rules.use_of(step.position)):
            grid.add_row("margin", _margin(used, instrument))
    else:
        grid.add_row("warming up", Text(f"{state.warming:,} bars taken in", "dim"))
    closed = datetime.fromtimestamp(bar.close_time_ms / 1000, UTC)
    return Panel(
        grid,
        title=f"[bold default]{instrument.symbol}[/] [default dim]{instrument.category.value}[/]",
        title_align="left",
        subtitle=f"[dim]closed {closed:%Y-%m-%d %H:%M} UTC[/]",
        subtitle_align="right",
        box=ROUNDED,
        border_style="bright_black",
    )


def _prediction(step: Step, horizon: int) -> list[tuple[str, Text]]:
    match step.prediction:
        case PredictionTimeout(deadline_ms=deadline_ms):
            return [("forecast", Text(f"none within {deadline_ms} ms", "yellow"))]
        case Forecast() as forecast:
            lines = [("forecast", _forecast(forecast, horizon))]
            if (explanation := forecast.explanation) is not None:
                regime = step.decision.regime.value if step.decision is not None else NOTHING
                text = (
                    f"confidence {_share(explanation.confidence)}  regime {regime}  "
                    f"recent mass {_share(explanation.recent_mass)}"
                )
                lines.append(("attention", Text(text)))
            return lines
        case _:
            return []


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _forecast(forecast: Forecast, horizon: int) -> Text:
    index = forecast.horizons.index(horizon) if horizon in forecast.horizons else 0
    text = Text(f"in {forecast.horizons[index]} bars  ")
    if forecast.mean_return:
        spread = f" ± {forecast.stdev_return[index]:.3%}" if forecast.stdev_return else ""
        text = Text(f"{forecast.mean_return[index]:+.3%}{spread} {text.plain}")
    if not forecast.p_up:
        return text
    shares = (forecast.p_down[index], forecast.p_flat[index], forecast.p_up[index])
    text.append(f"↓{shares[0]:.0%} ", DOWN)
    for cells, style in zip(split(shares, BAR_CELLS), (DOWN, FLAT, UP), strict=True):
        text.append("━" * cells, style)
    text.append(f" ↑{shares[2]:.0%}", UP)
    return text


def _decision(decision: Decision) -> Text:
    text = Text.assemble((decision.action.value, ACTION_STYLES[decision.action]))
    if decision.refused_by is not None:
        text.append(f"  {verdict(decision.action, decision.refused_by, decision.reason)}", "yellow")
    elif decision.unfilled_reason is not None:
        text.append(f"  unfilled: {decision.unfilled_reason}", "yellow")
    elif decision.reason:
        text.append(f"  {decision.reason}", "dim")
    return text


def _gates(decision: Decision, *, is_short: bool) -> RenderableType:
    """Return a cell for every gate; calibrated and failed ones show measure and threshold.

    With *is_short* the gates that passed are only counted.
    """
    rows = zip(
        decision.gate_set.gates, decision.measures, decision.gate_set.thresholds, strict=True
    )
    cells = []
    if is_short:
        count = decision.passed.bit_count()
        cells.append(Text.assemble(("✓ ", UP), f"{count} of {len(decision.measures)} passed"))
    for index, (gate, measure, threshold) in enumerate(rows):
        passed = decision.passed >> index & 1
        if passed and is_short:
            continue
        text = Text.assemble(("✓ ", UP) if passed else ("✗ ", DOWN))
        text.append(gate, "" if passed else "bold")
        if not passed or GATES[gate].calibrated_as:
            text.append(f" {measured(gate, measure)}/{measured(gate, threshold)}", "dim")
        cells.append(text)
    return Columns(cells, padding=(0, 2))


def _position(step: Step, instrument: Instrument) -> Text:
    position = step.position
    if position is None or position.quantity == 0:
        return Text("none", "dim")
    quantity = unscaled(position.quantity, instrument.quantity_decimals)
    size = abs(position.quantity) / 10**instrument.quantity_decimals
    average = abs(position.entry_notional) / MONEY_SCALE / size
    text = Text(
        f"{_grouped(quantity)} {instrument.base_coin} at {average:,.{instrument.price_decimals}f}  "
    )
    return text.append_text(_signed(position.unrealized_pnl / MONEY_SCALE))


def _margin(used: MarginUse, instrument: Instrument) -> Text:
    price = used.liquidation / 10**instrument.price_decimals
    return Text(
        f"{used.margin / MONEY_SCALE:,.2f} at {unscaled(used.leverage, LEVERAGE_DECIMALS)} x, "
        f"liquidated at {price:,.{instrument.price_decimals}f}"
    )


def _footer(state: ScreenState) -> RenderableType:
    if state.last is None:
        return Text()
    accounts = [("equity", state.last.account)]
    accounts += [(f"{twin.twin} twin", twin.account) for twin in state.last.twins]
    cells = []
    for name, account in accounts:
        text = Text.assemble((f" {name} ", "dim"), (f"{account.equity / MONEY_SCALE:,.2f} ", ""))
        if state.cash:
            text.append_text(_signed((account.equity / state.cash - 1) * 100, unit=" %"))
        cells.append(text)
    account = state.last.account
    costs = (account.fees_paid + account.funding_paid) / MONEY_SCALE
    if state.margin:
        used = sum(step.position.margin for step in state.bars.values() if step.position)
        cells.append(Text(f"margin used {used / MONEY_SCALE:,.2f}", "dim"))
    cells.append(Text(f"fees and funding {costs:,.2f}", "dim"))
    return Text("   ").join(cells)


def sparkline(values: Sequence[int]) -> str:
    """Return *values* as a line of blocks, lowest to highest."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    if span == 0:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[(value - low) * (len(BLOCKS) - 1) // span] for value in values)


def split(shares: Sequence[float], cells: int) -> list[int]:
    """Return *cells* divided by *shares*, whole cells that sum to *cells*."""
    total = sum(shares)
    if not total > 0:
        return [0, cells, 0][: len(shares)]
    edges = [round(cells * part / total) for part in itertools.accumulate(shares, initial=0.0)]
    return [after - before for before, after in itertools.pairwise(edges)]


def _signed(amount: float, *, unit: str = "") -> Text:
    style = UP if amount > 0 else DOWN if amount < 0 else "dim"
    return Text(f"{amount:+,.2f}{unit}", style)


def _grouped(text: str) -> str:
    """Put commas between the thousands of an exact decimal text."""
    whole, point, fraction = text.partition(".")
    return f"{int(whole):,}{point}{fraction}" if whole not in {"-0", ""} else text
