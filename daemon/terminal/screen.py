"""The status of a run as lines for a given size of terminal.

A status is the document that a daemon serves (``daemon/http/monitor.py``). ``tracepaper status``
and the live view draw it alike; the live view adds charts of price and equity.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from threading import Lock
from typing import Any, Final

from rich.text import Text

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.engine.state import RESERVE, SHADOWS, account_title, reserve_of
from tracepaper.strategies.gates.gate import GATES, measured, unit_beside, verdict
from tracepaper.strategies.types.decisions import Action, RunRow, Step
from tracepaper.strategies.types.market import Bar, Side
from tracepaper.strategies.units import NOTHING, count_of, percent, unscaled, visible

STOP: Final = "stop"
"""The view's message that the daemon shall stop, as by Ctrl-C."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
BRAILLE: Final = 0x2800
DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bits of the dots of a Braille pattern: left and right column, from the top."""
BAR_CELLS: Final = 30
LABEL_CELLS: Final = 11
NARROW: Final = 80
"""Columns below which the first line leaves out the counts."""
ROOMY_LINES: Final = 30
"""Least lines of a terminal for empty lines between the sections."""
CLOSES_KEPT: Final = 240
EQUITY_KEPT: Final = 400
FILLS_KEPT: Final = 5
LOG_KEPT: Final = 4
CHART_LINES: Final = range(3, 21)
"""Lines of the price chart; with fewer lines the price is a sparkline."""
NEAR: Final = 0.1
"""A gate is shown as nearly failed if its margin is at most this share of its threshold."""
NEAR_SHOWN: Final = 3
WHOLE_INSTRUMENTS: Final = 8
"""Most instruments that ``tracepaper status`` shows in full; of more, one line each."""
ACTION_STYLES: Final = {
    Action.LONG: "bold green",
    Action.SHORT: "bold red",
    Action.FLAT: "bold",
    Action.HOLD: "dim",
}
DOWN, FLAT, UP = "red", "bright_black", "green"

Status = dict[str, Any]
_BY_INSTRUMENT: Final = ("instruments", "closes")


class RunView:
    """The status of a run with the history of its prices and equity, for the live view.

    ``observe`` takes O(1) time per step, and memory is bounded. ``changes``, which another thread
    may call, returns updates for the view's process, which stores them with ``apply_change``.
    """

    def __init__(self, run: RunRow, clock: Clock) -> None:
        """Start with *run*; its stored configuration has the initial cash and the margin rules."""
        # Imported here, since the view's process does not need these modules.
        from tracepaper.daemon.config.loading import restore
        from tracepaper.daemon.http.monitor import Monitor
        from tracepaper.daemon.session.build import margin_rules

        config = restore(run.config)
        margin = margin_rules(config, run.instruments)
        self.decisions = 0
        self.monitor = Monitor(run=run, clock=clock, margin=margin)
        self._lock = Lock()
        self._cash = str(config.account.cash)
        self.instruments = {item.id: item for item in run.instruments}
        self._fills: list[Status] = []  # the newest first
        self._equity: list[int] = []  # sampled evenly over all decided bars
        self._every = 1  # decided bars between two values of equity
        self._closes: dict[str, list[int]] = {}
        self._changed: dict[str, None] = {}

    def observe(self, step: Step) -> None:
        """Update the status with *step*."""
        with self._lock:
            self._observe(step)

    def _observe(self, step: Step) -> None:
        self.monitor.observe(step)
        for fill in step.fills:
            item = self.instruments[fill.instrument]
            self._fills.insert(
                0,
                {
                    "filled_ms": fill.filled_ms,
                    "side": fill.side.value,
                    "quantity": unscaled(fill.quantity, item.quantity_decimals),
                    "symbol": item.symbol,
                    "price": f"{fill.price / 10**item.price_decimals:,.{item.price_decimals}f}",
                    "reason": fill.reason,
                },
            )
            del self._fills[FILLS_KEPT:]
        event = step.event
        if step.position is not None and (name := getattr(event, "instrument", "")):
            self._changed[name] = None
        if isinstance(event, Bar) and step.accepted:
            self._changed[event.instrument] = None
            closes = self._closes.setdefault(event.instrument, [])
            closes.append(event.close)
            del closes[:-CLOSES_KEPT]
            if step.decision is not None:
                self._sample(step.account.equity)

    def _sample(self, equity: int) -> None:
        if self.decisions % self._every == 0:
            self._equity.append(equity)
            if len(self._equity) > EQUITY_KEPT:
                del self._equity[1::2]
                self._every *= 2
        self.decisions += 1

    def changes(self) -> list[Status]:
        """Return the changes since the last call: the run's, then one for each instrument."""
        with self._lock:
            history = {"newest": self._fills.copy(), "equity": self._equity.copy()}
            changed, self._changed = self._changed, {}
            return [
                {**self.monitor.summary(), **history, "cash": self._cash},
                *(
                    {
                        "instruments": {name: self.monitor.instrument(name)},
                        "closes": {name: self._closes[name].copy()},
                    }
                    for name in changed
                    if name in self._closes
                ),
            ]


def apply_change(status: Status, change: Status) -> None:
    """Merge one *change* of ``RunView.changes`` into *status*."""
    for name, value in change.items():
        if name in _BY_INSTRUMENT:
            status.setdefault(name, {}).update(value)
        else:
            status[name] = value


@dataclass(frozen=True)
class _Section:
    """A part of the screen: every section gets *least* lines before any gets more, up to *most*."""

    draw: Callable[[int], Sequence[Text]]  # of the number of lines, at least one
    least: int
    most: int
    rank: int = 0  # sections of a lower rank get lines first
    is_parted: bool = False  # an empty line precedes it if there is room


def screen(status: Status, width: int, height: int, chosen: str = "") -> list[Text]:
    """Return at most *height* lines of *width* cells: the accounts, then decisions and reasons.

    Of several instruments *chosen* is shown in full, by default the first. If there are too few
    lines, price, equity, log, fills, other instruments, forecast and passed gates are cut, in this
    order.
    """
    top = [_head(status, width)]
    if status.get("halted_by"):
        banner = f" HALTED by {status['halted_by']}: no new exposure until RESUME (r) "
        top.append(Text.assemble(" ", (banner, "bold yellow reverse")))
    if status.get("account"):
        top.append(_money(status))
    sections = [_section(top)]
    if instruments := status.get("instruments"):
        name = chosen if chosen in instruments else next(iter(instruments))
        sections += _of_instrument(status, name, width)
        sections.append(_section(_others(status, name), least=2, rank=3, is_parted=True))
        fills = _rows("fills", list(map(_fill, status["newest"])))
        sections.append(_section(fills, least=1, rank=4, is_parted=True))
    else:
        sections.append(_section([Text(" waiting for the first closed bar", "dim")]))
    log = [Text.assemble(" ", Text.from_ansi(line)) for line in status.get("log", ())]
    count = len(log)
    sections.append(_Section(lambda most: log[-most:], min(count, 1), count, 5, is_parted=True))
    lines = _fitted(sections, height)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def status_lines(status: Status) -> list[Text]:
    """Return the accounts and instruments of *status*, in full or, if many, one line each."""
    instruments = status["instruments"]
    sections = [_section([_money(status)] if status["account"] else [])]
    if len(instruments) > WHOLE_INSTRUMENTS:
        sections.append(_section(_others(status, "")))
    else:
        for name in instruments:
            sections += _of_instrument(status, name, 0)
    return _fitted(sections, sum(part.most + 1 for part in sections) + ROOMY_LINES)


def _escaped(line: Text) -> Text:
    """Return *line* with control characters escaped, without style; it stays a single line."""
    text = visible(line.plain).translate({ord("\n"): " ", ord("\t"): " "})
    return line if text == line.plain else Text(text)


def _section(
    lines: Sequence[Text], *, least: int | None = None, rank: int = 0, is_parted: bool = False
) -> _Section:
    count = len(lines)
    least = count if least is None else min(count, least)
    return _Section(lambda most: lines[:most], least, count, rank, is_parted)


def _fitted(sections: Sequence[_Section], height: int) -> list[Text]:
    """Draw the sections in order within *height* lines, shared out by rank."""
    gaps = [height >= ROOMY_LINES and part.is_parted and part.most > 0 for part in sections]
    left, given = height - sum(gaps), [0] * len(sections)
    ranked = sorted(range(len(sections)), key=lambda place: sections[place].rank)
    for takes_most in (False, True):
        for place in ranked:
            wanted = sections[place].most if takes_most else sections[place].least
            more = min(wanted - given[place], left)
            given[place] += more
            left -= more
    lines: list[Text] = []
    for section, gap, most in zip(sections, gaps, given, strict=True):
        if most > 0:
            lines += [Text()] * gap
            lines += map(_escaped, section.draw(most))
    return lines


def _row(label: str, *parts: Text | str | tuple[str, str]) -> Text:
    return Text.assemble((f" {label:<{LABEL_CELLS - 1}}", "dim"), *parts)


def _rows(label: str, lines: Sequence[Text]) -> list[Text]:
    """Label the first of *lines*."""
    return [_row("" if place else label, line) for place, line in enumerate(lines)]


# ---------------------------------------------------------------- the whole run


def _head(status: Status, width: int) -> Text:
    """Return the first line; if it is too long, the run's id is cut first."""
    counts = f"{status['bars_per_s']:,.1f} bars/s "
    name = Text.assemble((" tracepaper", "bold"))
    if "run_id" in status:
        if width >= NARROW:
            done = f"decisions {status['decisions']:,}  fills {status['fills']:,}"
            counts = f"{done}  {counts}"
        name.append(f"  {status['kind']}", "cyan")
        name.append(f"  {status['strategy']} {status['model_id']}".rstrip())
        name.append(f"  run {status['run_id']}", "dim")
    name.truncate(max(width - len(counts) - 1, 0), overflow="ellipsis", pad=True)
    return Text.assemble(name, " ", (counts, "dim"))


_SHADOW_TITLES: Final = frozenset(map(account_title, SHADOWS))


def _money(status: Status) -> Text:
    main, cash = status["account"], Decimal(status.get("cash", 0))
    accounts = {"equity": main}
    accounts |= {account_title(name): account for name, account in status["shadows"].items()}
    cells = []
    for name, texts in accounts.items():
        account = {key: Decimal(amount) for key, amount in texts.items() if isinstance(amount, str)}
        text = Text.assemble((f" {name} ", "dim"))
        text.append(f"{account['equity']:,.2f} ", "bold" if texts is main else "")
        if texts is not main and name not in _SHADOW_TITLES:  # a strategy's share of the cash
            earned = account["realized_pnl"] + account["unrealized_pnl"]
            text.append_text(_signed(earned - account["fees_paid"] - account["funding_paid"]))
        elif cash:
            text.append_text(_signed((account["equity"] / cash - 1) * 100, unit=" %"))
        cells.append(text)
    equity = {name: Decimal(account["equity"]) for name, account in status["shadows"].items()}
    if reserve := reserve_of(Decimal(main["equity"]), equity):
        cells.append(Text.assemble((f" {RESERVE} ", "dim"), f"{reserve:,.2f} "))
    if "margin_used" in main:
        cells.append(Text(f"margin used {Decimal(main['margin_used']):,.2f}", "dim"))
    if (ratio := main.get("maintenance_ratio")) is not None:
        cells.append(Text(f"maintenance ratio {percent(ratio, 1)}, liquidated at 100 %", "dim"))
    paid = Decimal(main["fees_paid"]) + Decimal(main["funding_paid"])
    cells.append(Text(f"fees and funding {paid:,.2f}", "dim"))
    return Text("  ").join(cells)


def _fill(fill: Status) -> Text:
    return Text.assemble(
        (f"{datetime.fromtimestamp(fill['filled_ms'] / 1000, UTC):%H:%M:%S} ", "dim"),
        (f"{fill['side']:<4} ", UP if fill["side"] == Side.BUY else DOWN),
        f"{_grouped(fill['quantity'])} {fill['symbol']} at {fill['price']}  ",
        (fill["reason"], "dim"),
    )


# ---------------------------------------------------------------- one instrument


def _of_instrument(status: Status, name: str, width: int) -> list[_Section]:
    """Return an instrument's sections: price, position, decision, gates, forecast and charts."""
    instruments = status["instruments"]
    facts = instruments[name]
    category, _, symbol = name.partition(":")
    closed = datetime.fromtimestamp(facts["close_time_ms"] / 1000, UTC)
    place = f"  {list(instruments).index(name) + 1} of {len(instruments)}, tab: next"
    lines = [
        _row(
            symbol,
            (_price(facts["close"], facts), "bold"),
            (f"  {category}  closed {closed:%Y-%m-%d %H:%M} UTC", "dim"),
            (place if len(instruments) > 1 and "closes" in status else "", "dim"),
        )
    ]
    gates = []
    if "action" not in facts:
        lines.append(_row("warming", (f"{count_of(status['warmup_bars'], 'bar')} taken in", "dim")))
    else:
        for title, held in facts.get("sides", {"position": facts}).items():
            lines.append(_row(title, _position(held, facts)))
            if "margin" in held:
                lines.append(_row("margin", _margin(held, facts)))
        lines.append(_row("decision", _decision(facts)))
        gates.append(_gates(facts["gates"]))
    forecast = [_row(title, line) for title, line in _prediction(facts)]
    sections = [_section(lines, is_parted=True), *gates, _section(forecast, least=2, rank=2)]
    if (closes := status.get("closes", {}).get(name)) is None:
        return sections
    cells = width - LABEL_CELLS - 1
    equity = [_row("equity", (sparkline(sampled(status["equity"], cells)), "cyan"))]

    def chart(most: int) -> Sequence[Text]:
        if most < CHART_LINES[0]:
            return [_row("price", (sparkline(sampled(closes, cells)), "cyan"))]
        unit = 10 ** facts["price_decimals"]
        ends = [_price(end / unit, facts) for end in (max(closes), min(closes))]
        edge = max(map(len, ends)) + 1
        labels = [ends[0], *[""] * (most - 2), ends[1]]
        drawn = zip(line_chart(closes, cells - edge, most), labels, strict=True)
        return _rows(
            "price",
            [Text.assemble((line, "cyan"), (f"{label:>{edge}}", "dim")) for line, label in drawn],
        )

    return [
        *sections,
        _section(equity if status["equity"] else [], rank=6, is_parted=True),
        _Section(chart, 1, CHART_LINES[-1], rank=7),
    ]


def _price(price: str | float, facts: Status) -> str:
    return f"{Decimal(price):,.{facts['price_decimals']}f}"


def _others(status: Status, shown: str) -> list[Text]:
    """Return a line for each instrument except *shown*."""
    lines = []
    for name, facts in status["instruments"].items():
        if name != shown:
            symbol, price = name.partition(":")[2], f"{_price(facts['close'], facts):>12}  "
            line = _row(symbol[: LABEL_CELLS - 2], price, _position(facts, facts))
            if "action" in facts:
                line.append("  ").append_text(_decision(facts))
            lines.append(line)
    return lines


def _prediction(facts: Status) -> list[tuple[str, Text]]:
    if (forecast := facts["forecast"]) is None:
        return []
    if (deadline_ms := forecast.get("deadline_ms")) is not None:
        return [("forecast", Text(f"none within {deadline_ms} ms", "yellow"))]
    lines = [("forecast", _forecast(forecast))]
    if "confidence_entropy" in forecast:
        text = (
            f"confidence_entropy {_share(forecast['confidence_entropy'])}  "
            f"regime {facts.get('regime', NOTHING)}  recent mass {_share(forecast['recent_mass'])}"
        )
        lines.append(("attention", Text(text)))
    return lines


def _share(value: float | None, form: str = ".3f") -> str:
    return NOTHING if value is None else f"{value:{form}}"


def _percent(value: float | None, *, signed: bool = False) -> str:
    return NOTHING if value is None else percent(value, 3, signed=signed)


def _forecast(forecast: Status) -> Text:
    text = Text(f"in {forecast['horizon']} bars  ")
    if "mean_return" in forecast:
        spread = f" ± {_percent(forecast['stdev_return'])}" if "stdev_return" in forecast else ""
        text = Text(f"{_percent(forecast['mean_return'], signed=True)}{spread} {text.plain}")
    shares = [forecast[name] for name in ("p_down", "p_flat", "p_up") if name in forecast]
    if None in shares or not shares:
        return text
    text.append(f"↓{percent(shares[0], 0)} ", DOWN)
    for cells, style in zip(split(shares, BAR_CELLS), (DOWN, FLAT, UP), strict=True):
        text.append("━" * cells, style)
    text.append(f" ↑{percent(shares[2], 0)}", UP)
    return text


def _decision(facts: Status) -> Text:
    action, refused_by = Action(facts["action"]), facts["refused_by"]
    text = Text.assemble((action.value, ACTION_STYLES.get(action, "bold")))
    if refused_by is not None:
        text.append(f"  {verdict(action, refused_by, facts['reason'])}", "yellow")
    elif facts["unfilled"] is not None:
        text.append(f"  unfilled: {facts['unfilled']}", "yellow")
    elif facts["reason"]:
        text.append(f"  {facts['reason']}", "dim")
    return text


def _gates(gates: Sequence[Mapping[str, Any]]) -> _Section:
    """Return a line for each gate that failed or nearly failed, and the count of those passed."""
    failed: list[Text] = []
    near: list[tuple[float, int, Text]] = []
    for index, row in enumerate(gates):
        gate, measure, threshold = row["gate"], row["measure"], row["threshold"]
        spare, facts = _spare(gate, measure, threshold), _against(gate, measure, threshold)
        if not row["passed"]:
            failed.append(Text.assemble(("✗ ", DOWN), (gate, "bold"), facts))
        elif threshold and spare is not None and 0 <= spare <= NEAR * abs(threshold):
            line = Text.assemble(("! ", "yellow"), gate, facts)
            near.append((spare / abs(threshold), index, line))
    nearest = [line for *_, line in sorted(near)][:NEAR_SHOWN]
    total = len(gates)
    counted = Text.assemble(("✓ ", UP), f"{total - len(failed)} of {total} passed")

    def draw(most: int) -> Sequence[Text]:
        lines = [*failed, *nearest[: max(most - len(failed) - 1, 0)], counted]
        if len(lines) > most > 1:
            more = Text(f"✗ and {len(failed) - most + 1} more of {total} failed", DOWN)
            lines = [*failed[: most - 1], more]
        return _rows("gates", lines[:most])

    most = len(failed) + len(nearest) + 1
    return _Section(draw, min(most, 3 if failed else 1), most, rank=1)


def _spare(gate: str, measure: float | None, threshold: float) -> float | None:
    """Return a gate's margin, negative if it failed; None for a gate without one."""
    declared = GATES.get(gate)
    if declared is None or declared.is_switch or measure is None:
        return None
    if declared.is_capped and measure == threshold:
        return None  # the measure is capped at the threshold, so the margin is unknown
    return measure - threshold if declared.at_least else threshold - measure


def _against(gate: str, measure: float | None, threshold: float) -> Text:
    """Return a gate's measure, threshold and margin as text."""
    declared = GATES.get(gate)
    if declared is not None and declared.is_switch:
        return Text(f"  {measured(gate, measure)}", "dim")
    sign = "≥" if declared is None or declared.at_least else "≤"
    text = f"  {measured(gate, measure)}, needs {sign} {measured(gate, threshold)}"
    if (spare := _spare(gate, measure, threshold)) is not None:
        side = "to spare" if spare >= 0 else "short" if sign == "≥" else "over"
        text += f", {measured(gate, abs(spare))} {side}"
    return Text(f"{text}  {unit_beside(gate)}".rstrip(), "dim")


def _position(held: Status, facts: Status) -> Text:
    if "entry_price" not in held:
        return Text("none", "dim")
    price = _price(held["entry_price"], facts)
    text = Text(f"{_grouped(held['quantity'])} {facts['base_coin']} at {price}  ")
    return text.append_text(_signed(Decimal(held["unrealized_pnl"])))


def _margin(held: Status, facts: Status) -> Text:
    return Text(
        f"{Decimal(held['margin']):,.2f} at {held['leverage']} x, "
        f"liquidated at {_price(held['liquidation_price'], facts)}"
    )


# ---------------------------------------------------------------- lines of values


def sampled(values: Sequence[int], count: int) -> Sequence[int]:
    """Return at most *count* of *values*, evenly spaced, including the last."""
    if len(values) <= count:
        return values
    return [values[(place + 1) * len(values) // count - 1] for place in range(count)]


def sparkline(values: Sequence[int]) -> str:
    """Return *values* as a line of block characters, scaled between their bounds."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    if span == 0:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[(value - low) * (len(BLOCKS) - 1) // span] for value in values)


def line_chart(values: Sequence[int], columns: int, rows: int) -> list[str]:
    """Return a chart of *values*: *rows* lines of *columns* Braille patterns."""
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
    """Divide *cells* in proportion to *shares* into integers that sum to *cells*."""
    total = sum(shares)
    if not total > 0:
        return [0, cells, 0][: len(shares)]
    edges = [round(cells * part / total) for part in itertools.accumulate(shares, initial=0.0)]
    return [after - before for before, after in itertools.pairwise(edges)]


def _signed(amount: Decimal, *, unit: str = "") -> Text:
    style = UP if amount > 0 else DOWN if amount < 0 else "dim"
    return Text(f"{amount:+,.2f}{unit}", style)


def _grouped(text: str) -> str:
    """Insert thousands separators into an exact decimal text."""
    whole, point, fraction = text.partition(".")
    return f"{int(whole):,}{point}{fraction}" if whole not in {"-0", ""} else text
