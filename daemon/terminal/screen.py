"""The content of the live view: what it keeps of a run, and its lines for a size of terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from tracepaper.daemon.broker.account import SIDES
from tracepaper.daemon.engine.state import RESERVE, TWINS, account_title, reserve_of
from tracepaper.strategies.gates.declared import operator, risk_halt
from tracepaper.strategies.gates.gate import GATES, measured, unit_beside, verdict
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    Decision,
    Fill,
    Forecast,
    Position,
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
    Side,
)
from tracepaper.strategies.units import (
    MONEY_DECIMALS,
    MONEY_SCALE,
    NOTHING,
    count_of,
    scaled,
    unscaled,
    visible,
)

if TYPE_CHECKING:  # what the view's own process starts without
    from tracepaper.daemon.broker.rules import MarginRules, MarginUse

STOP: Final = "stop"
"""The view's word that the daemon is to stop, as by Ctrl-C."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
BRAILLE: Final = 0x2800
DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bit of a Braille pattern's dots: left and right column, from the top."""
BAR_CELLS: Final = 30
LABEL_CELLS: Final = 11
NARROW: Final = 80
"""Columns of a terminal below which the first line leaves out the counts."""
ROOMY_LINES: Final = 30
"""Lines of a terminal from which on an empty line parts the sections."""
CLOSES_KEPT: Final = 240
EQUITY_KEPT: Final = 400
FILLS_KEPT: Final = 5
LOG_KEPT: Final = 4
CHART_LINES: Final = range(3, 21)
"""The price has at least so many lines, or none of its own."""
NEAR: Final = 0.1
"""A gate passed nearly where its margin is at most this share of its threshold."""
NEAR_SHOWN: Final = 3
ACTION_STYLES: Final = {
    Action.LONG: "bold green",
    Action.SHORT: "bold red",
    Action.FLAT: "bold",
    Action.HOLD: "dim",
}
_HALTING: Final = frozenset({operator.name, risk_halt.name})
DOWN, FLAT, UP = "red", "bright_black", "green"

Change = dict[str, Any]
"""New values of a ``ScreenState`` by the name of the field; those of a dictionary are merged."""


@dataclass(slots=True)
class ScreenState:
    """The data of the live view.

    The daemon's ``observe`` is O(1) a step, and nothing here grows with time. ``changes`` tells
    another state of it, which stands in the view's own process, by ``apply``.
    """

    # of the run
    run: Run | None = None
    cash: int = 0  # money at the start of the account; 0 while unknown
    horizon: int = 0  # of the forecast that is shown, in bars
    instruments: dict[str, Instrument] = field(default_factory=dict)
    margin: Mapping[str, MarginRules] = field(default_factory=dict)  # where it trades on margin
    # of the newest step
    account: Account | None = None
    twins: dict[str, Account] = field(default_factory=dict)
    model_id: str = ""  # of the model that decides now
    halted_by: str = ""  # the gate that allows no new exposure until RESUME
    decisions: int = 0
    warming: int = 0
    fills: int = 0
    bars_per_s: float = 0.0
    newest: tuple[Fill, ...] = ()  # the newest first
    equity: list[int] = field(default_factory=list)  # money, evenly over all decided bars
    log: tuple[str, ...] = ()  # the newest last
    # by instrument
    bars: dict[str, Step] = field(default_factory=dict)
    closes: dict[str, list[int]] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    sides: dict[str, dict[str, Position]] = field(default_factory=dict)  # in hedge mode
    # what was not told yet
    is_opened: bool = False
    changed: dict[str, None] = field(default_factory=dict)
    every: int = 1  # decided bars between two values of equity

    def open(self, run: Run) -> None:
        """Remember *run*; its stored configuration names the starting cash and the horizon."""
        from tracepaper.daemon.config.loading import restore
        from tracepaper.daemon.session.build import margin_rules

        config = restore(run.config)
        self.run, self.model_id, self.is_opened = run, run.model_id, True
        self.instruments = {item.id: item for item in run.instruments}
        self.cash = scaled(config.account.cash, MONEY_DECIMALS, name="[account] cash")
        self.horizon = config.gate.horizon
        self.margin = margin_rules(config, run.instruments)

    def observe(self, step: Step) -> None:
        """Take in *step*."""
        self.account = step.account
        for twin in step.twins:
            self.twins[twin.twin] = twin.account
        if step.position is not None and isinstance(
            name := getattr(step.event, "instrument", None), str
        ):
            self.positions[name] = step.position  # quotes fill, and marks move it, between bars
            self.sides[name] = {
                shadow.twin: shadow.position for shadow in step.twins if shadow.twin in SIDES
            }
            self.changed[name] = None
        if step.fills:
            self.fills += len(step.fills)
            self.newest = (*reversed(step.fills), *self.newest)[:FILLS_KEPT]
        if isinstance(step.event, ModelChange):
            self.model_id = step.event.model_id
        if isinstance(step.event, Command):
            is_resumed = step.event.kind is CommandKind.RESUME
            self.halted_by = "" if is_resumed else operator.name
        elif step.halted is not None:
            self.halted_by = step.halted.limit
        elif step.decision is not None and step.decision.refused_by in _HALTING:
            self.halted_by = self.halted_by or step.decision.refused_by or ""
        if isinstance(step.event, Bar) and step.accepted:
            name = step.event.instrument
            self.bars[name] = step
            self.changed[name] = None
            closes = self.closes.setdefault(name, [])
            closes.append(step.event.close)
            del closes[:-CLOSES_KEPT]
            if step.decision is None:
                self.warming += 1
            else:
                self._count_decision(step.account.equity)

    def _count_decision(self, equity: int) -> None:
        if self.decisions % self.every == 0:
            self.equity.append(equity)
            if len(self.equity) > EQUITY_KEPT:
                del self.equity[1::2]
                self.every *= 2
        self.decisions += 1

    def changes(self) -> list[Change]:
        """Return all that changed since the last call, each part of one instrument at most."""
        names = [field.name for field in fields(self)]
        first, last = names.index("run" if self.is_opened else "account"), names.index("bars")
        totals = {name: getattr(self, name) for name in names[first:last]}
        copied = {"equity": self.equity.copy(), "twins": self.twins.copy()}
        parts: list[Change] = [{**totals, **copied}]
        for name in self.changed:
            part: Change = {}
            if name in self.positions:
                part["positions"] = {name: self.positions[name]}
                part["sides"] = {name: self.sides[name]}
            if name in self.bars:
                part |= {
                    "bars": {name: self.bars[name]},
                    "closes": {name: self.closes[name].copy()},
                }
            parts.append(part)
        self.is_opened = False
        self.changed.clear()
        return parts

    def apply(self, change: Change) -> None:
        """Take in what another state's ``changes`` returned."""
        for name, value in change.items():
            if isinstance(value, dict):
                getattr(self, name).update(value)
            else:
                setattr(self, name, value)


@dataclass(frozen=True)
class _Section:
    """A part of the screen: it has *least* lines before any other has more, and *most* at most."""

    draw: Callable[[int], Sequence[Text]]  # in so many lines, at least one
    least: int
    most: int
    rank: int = 0  # in which order the parts are given lines
    is_parted: bool = False  # an empty line stands before it where there is room


def screen(state: ScreenState, width: int, height: int, chosen: str = "") -> list[Text]:
    """Return at most *height* lines of *width* cells: money first, then what was decided and why.

    Of several instruments *chosen* is shown whole, by default the first. Where lines are few, the
    price, equity, the log, fills and the forecast give way in this order, and gates that passed.
    """
    top = [_head(state, width)]
    if state.halted_by:
        top.append(_banner(state))
    if state.account is not None:
        top.append(_money(state))
    sections = [_section(top)]
    if state.bars:
        name = chosen if chosen in state.bars else next(iter(state.bars))
        sections += _of_instrument(state, name, width)
        sections.append(_section(_others(state, name), least=2, rank=3, is_parted=True))
        fills = _rows("fills", [_fill(state, fill) for fill in state.newest])
        sections.append(_section(fills, least=1, rank=4, is_parted=True))
    else:
        sections.append(_section([Text(" waiting for the first closed bar", "dim")]))
    log = [Text.assemble(" ", Text.from_ansi(line)) for line in state.log]
    many = len(log)
    sections.append(_Section(lambda most: log[-most:], min(many, 1), many, 5, is_parted=True))
    lines = [_harmless(line) for line in _fitted(sections, height)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _harmless(line: Text) -> Text:
    """Write control characters out, as text without a style; a line stays one line."""
    text = visible(line.plain).translate({ord("\n"): " ", ord("\t"): " "})
    return line if text == line.plain else Text(text)


def _section(
    lines: Sequence[Text], *, least: int | None = None, rank: int = 0, is_parted: bool = False
) -> _Section:
    many = len(lines)
    least = many if least is None else min(many, least)
    return _Section(lambda most: lines[:most], least, many, rank, is_parted)


def _fitted(sections: Sequence[_Section], height: int) -> list[Text]:
    """Draw the sections in their order, with as many lines as *height* has for each."""
    gaps = [height >= ROOMY_LINES and part.is_parted and part.most > 0 for part in sections]
    left, given = height - sum(gaps), [0] * len(sections)
    ranked = sorted(range(len(sections)), key=lambda place: sections[place].rank)
    for of_all in (False, True):
        for place in ranked:
            wanted = sections[place].most if of_all else sections[place].least
            more = min(wanted - given[place], left)
            given[place] += more
            left -= more
    lines: list[Text] = []
    for section, gap, most in zip(sections, gaps, given, strict=True):
        if most > 0:
            lines += [Text()] * gap
            lines += section.draw(most)
    return lines


def _row(label: str, *parts: Text | str | tuple[str, str]) -> Text:
    return Text.assemble((f" {label:<{LABEL_CELLS - 1}}", "dim"), *parts)


def _rows(label: str, lines: Sequence[Text]) -> list[Text]:
    """Label the first of *lines*."""
    return [_row("" if place else label, line) for place, line in enumerate(lines)]


# ---------------------------------------------------------------- the whole run


def _head(state: ScreenState, width: int) -> Text:
    """Return one line; where it is too long, an ellipsis cuts the run's id first."""
    counts = f"{state.bars_per_s:,.1f} bars/s "
    if width >= NARROW:
        counts = f"decisions {state.decisions:,}  fills {state.fills:,}  {counts}"
    name = Text.assemble((" tracepaper", "bold"))
    if (run := state.run) is not None:
        name.append(f"  {run.kind.value}", "cyan")
        name.append(f"  {run.strategy} {state.model_id}".rstrip())
        name.append(f"  run {run.run_id}", "dim")
    name.truncate(max(width - len(counts) - 1, 0), overflow="ellipsis", pad=True)
    return Text.assemble(name, " ", (counts, "dim"))


def _banner(state: ScreenState) -> Text:
    words = f" HALTED by {state.halted_by}: no new exposure until RESUME (r) "
    return Text.assemble(" ", (words, "bold yellow reverse"))


_TWIN_TITLES: Final = frozenset(map(account_title, TWINS))


def _money(state: ScreenState) -> Text:
    assert state.account is not None
    accounts = [("equity", state.account)]
    accounts += [(account_title(name), account) for name, account in state.twins.items()]
    cells = []
    for name, account in accounts:
        is_own = account is state.account
        text = Text.assemble((f" {name} ", "dim"))
        text.append(f"{account.equity / MONEY_SCALE:,.2f} ", "bold" if is_own else "")
        if not is_own and name not in _TWIN_TITLES:  # it began with a part of the cash
            earned = account.realized_pnl + account.unrealized_pnl
            earned -= account.fees_paid + account.funding_paid
            text.append_text(_signed(earned / MONEY_SCALE))
        elif state.cash:
            text.append_text(_signed((account.equity / state.cash - 1) * 100, unit=" %"))
        cells.append(text)
    equity = {name: Decimal(account.equity) for name, account in state.twins.items()}
    if reserve := reserve_of(Decimal(state.account.equity), equity):
        cells.append(Text.assemble((f" {RESERVE} ", "dim"), f"{reserve / MONEY_SCALE:,.2f} "))
    if state.margin:
        held = state.positions.items()
        used = sum(
            state.margin[name].used_by(position) for name, position in held if name in state.margin
        )
        cells.append(Text(f"margin used {used / MONEY_SCALE:,.2f}", "dim"))
    costs = (state.account.fees_paid + state.account.funding_paid) / MONEY_SCALE
    cells.append(Text(f"fees and funding {costs:,.2f}", "dim"))
    return Text("  ").join(cells)


def _fill(state: ScreenState, fill: Fill) -> Text:
    instrument = state.instruments[fill.instrument]
    price = fill.price / 10**instrument.price_decimals
    return Text.assemble(
        (f"{datetime.fromtimestamp(fill.filled_ms / 1000, UTC):%H:%M:%S} ", "dim"),
        (f"{fill.side.value:<4} ", UP if fill.side is Side.BUY else DOWN),
        f"{_grouped(unscaled(fill.quantity, instrument.quantity_decimals))} {instrument.symbol} ",
        f"at {price:,.{instrument.price_decimals}f}  ",
        (fill.reason, "dim"),
    )


# ---------------------------------------------------------------- one instrument


def _of_instrument(state: ScreenState, name: str, width: int) -> list[_Section]:
    """Return price and position, the decision with its gates, the forecast, equity and a chart."""
    step, instrument = state.bars[name], state.instruments[name]
    bar = step.event
    assert isinstance(bar, Bar)
    closed = datetime.fromtimestamp(bar.close_time_ms / 1000, UTC)
    place = f"  {list(state.bars).index(name) + 1} of {len(state.bars)}, tab: next"
    facts = [
        _row(
            instrument.symbol,
            (_price(bar.close, instrument), "bold"),
            (f"  {instrument.category.value}  closed {closed:%Y-%m-%d %H:%M} UTC", "dim"),
            (place if len(state.bars) > 1 else "", "dim"),
        )
    ]
    gates = []
    if step.decision is None:
        facts.append(_row("warming up", (f"{count_of(state.warming, 'bar')} taken in", "dim")))
    else:
        positions: dict[str, Position | None] = {**state.sides.get(name, {})}
        for title, held in (positions or {"": state.positions.get(name)}).items():
            facts.append(_row(title.lower() or "position", _position(held, instrument)))
            if (rules := state.margin.get(name)) and (used := rules.use_of(held)):
                facts.append(_row("margin", _margin(used, instrument)))
        facts.append(_row("decision", _decision(step.decision)))
        gates.append(_gates(step.decision))
    forecast = [_row(title, line) for title, line in _prediction(step, state.horizon)]
    cells, closes = width - LABEL_CELLS - 1, state.closes[name]
    equity = [_row("equity", (sparkline(sampled(state.equity, cells)), "cyan"))]

    def chart(lines: int) -> Sequence[Text]:
        if lines < CHART_LINES[0]:
            return [_row("price", (sparkline(sampled(closes, cells)), "cyan"))]
        ends = (_price(max(closes), instrument), _price(min(closes), instrument))
        edge = max(map(len, ends)) + 1
        labels = [ends[0], *[""] * (lines - 2), ends[1]]
        drawn = zip(line_chart(closes, cells - edge, lines), labels, strict=True)
        return _rows(
            "price",
            [Text.assemble((line, "cyan"), (f"{label:>{edge}}", "dim")) for line, label in drawn],
        )

    return [
        _section(facts, is_parted=True),
        *gates,
        _section(forecast, least=2, rank=2),
        _section(equity if state.equity else [], rank=6, is_parted=True),
        _Section(chart, 1, CHART_LINES[-1], rank=7),
    ]


def _price(price: int, instrument: Instrument) -> str:
    return f"{price / 10**instrument.price_decimals:,.{instrument.price_decimals}f}"


def _others(state: ScreenState, shown: str) -> list[Text]:
    """Return a line for each instrument but the one that is *shown*."""
    lines = []
    for name, step in state.bars.items():
        if name != shown and isinstance(step.event, Bar):
            instrument = state.instruments[name]
            price = f"{_price(step.event.close, instrument):>12}  "
            line = _row(
                instrument.symbol[: LABEL_CELLS - 2],
                price,
                _position(state.positions.get(name), instrument),
            )
            if step.decision is not None:
                line.append("  ").append_text(_decision(step.decision))
            lines.append(line)
    return lines


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
    text = Text.assemble((decision.action.value, ACTION_STYLES.get(decision.action, "bold")))
    if decision.refused_by is not None:
        text.append(f"  {verdict(decision.action, decision.refused_by, decision.reason)}", "yellow")
    elif decision.unfilled_reason is not None:
        text.append(f"  unfilled: {decision.unfilled_reason}", "yellow")
    elif decision.reason:
        text.append(f"  {decision.reason}", "dim")
    return text


def _gates(decision: Decision) -> _Section:
    """Return a line for each gate that failed, or passed nearly; the others are counted."""
    failed: list[Text] = []
    near: list[tuple[float, int, Text]] = []
    rows = zip(
        decision.gate_set.gates, decision.measures, decision.gate_set.thresholds, strict=True
    )
    for index, (gate, measure, threshold) in enumerate(rows):
        spare, facts = _spare(gate, measure, threshold), _against(gate, measure, threshold)
        if not decision.passed >> index & 1:
            failed.append(Text.assemble(("✗ ", DOWN), (gate, "bold"), facts))
        elif threshold and spare is not None and 0 <= spare <= NEAR * abs(threshold):
            line = Text.assemble(("! ", "yellow"), gate, facts)
            near.append((spare / abs(threshold), index, line))
    nearest = [line for *_, line in sorted(near)][:NEAR_SHOWN]
    total, passed = len(decision.measures), decision.passed.bit_count()
    counted = Text.assemble(("✓ ", UP), f"{passed} of {total} passed")

    def draw(most: int) -> Sequence[Text]:
        lines = [*failed, *nearest[: max(most - len(failed) - 1, 0)], counted]
        if len(lines) > most > 1:
            more = Text(f"✗ and {len(failed) - most + 1} more of {total} failed", DOWN)
            lines = [*failed[: most - 1], more]
        return _rows("gates", lines[:most])

    most = len(failed) + len(nearest) + 1
    return _Section(draw, min(most, 3 if failed else 1), most, rank=1)


def _spare(gate: str, measure: float | None, threshold: float) -> float | None:
    """Return by how much a gate passed, below 0 where it failed; None where nothing is near."""
    declared = GATES.get(gate)
    if declared is None or declared.is_switch or measure is None:
        return None
    if declared.is_capped and measure == threshold:
        return None  # its measure stops there: it says nothing about how near it was
    return measure - threshold if declared.at_least else threshold - measure


def _against(gate: str, measure: float | None, threshold: float) -> Text:
    """Return measure and threshold, and how much was short or is to spare."""
    declared = GATES.get(gate)
    if declared is not None and declared.is_switch:
        return Text(f"  {measured(gate, measure)}", "dim")
    sign = "≥" if declared is None or declared.at_least else "≤"
    text = f"  {measured(gate, measure)}, needs {sign} {measured(gate, threshold)}"
    if (spare := _spare(gate, measure, threshold)) is not None:
        words = "to spare" if spare >= 0 else "short" if sign == "≥" else "over"
        text += f", {measured(gate, abs(spare))} {words}"
    return Text(f"{text}  {unit_beside(gate)}".rstrip(), "dim")


def _position(position: Position | None, instrument: Instrument) -> Text:
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
    return Text(
        f"{used.margin / MONEY_SCALE:,.2f} at {unscaled(used.leverage, LEVERAGE_DECIMALS)} x, "
        f"liquidated at {_price(used.liquidation, instrument)}"
    )


# ---------------------------------------------------------------- lines of values


def sampled(values: Sequence[int], count: int) -> Sequence[int]:
    """Return at most *count* of *values*, evenly, the last among them."""
    if len(values) <= count:
        return values
    return [values[(place + 1) * len(values) // count - 1] for place in range(count)]


def sparkline(values: Sequence[int]) -> str:
    """Return *values* as a line of blocks, lowest to highest."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    if span == 0:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[(value - low) * (len(BLOCKS) - 1) // span] for value in values)


def line_chart(values: Sequence[int], columns: int, rows: int) -> list[str]:
    """Return *values* as *rows* lines of *columns* Braille patterns, lowest at the bottom."""
    cells = [[BRAILLE] * columns for _ in range(rows)]
    low, span = min(values), max(values) - min(values) or 1
    before = None
    for x in range(2 * columns):
        value = values[x * len(values) // (2 * columns)]
        y = (4 * rows - 1) * (low + span - value) // span
        first, last = sorted((y, y if before is None else before))
        for dot in range(first, last + 1):
            cells[dot // 4][x // 2] |= DOTS[x % 2][dot % 4]
        before = y
    return ["".join(map(chr, row)) for row in cells]


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
