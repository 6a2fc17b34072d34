"""The document that a daemon serves at ``/status``, as text.

``tracepaper status`` prints it, and the live view of ``tracepaper run`` repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from rich.text import Text

from tracepaper.daemon.http.monitor import counts_text
from tracepaper.strategies.gates.gate import GATES, measured, unit_beside, verdict
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.units import NOTHING, count_of, minute_text, money_text, percent, visible

LABEL_CELLS: Final = 10
REASONS_SHOWN: Final = 5
WHOLE_INSTRUMENTS: Final = 8
"""Most instruments that are shown in full; of more, one line each."""
ACTION_STYLES: Final = {
    Action.LONG: "bold green",
    Action.SHORT: "bold red",
    Action.FLAT: "bold",
    Action.HOLD: "dim",
}

Status = Mapping[str, Any]


def status_text(status: Status, *, whole: int = WHOLE_INSTRUMENTS) -> Text:
    """Return health, background work, accounts and instruments, a line each.

    At most *whole* instruments are shown in full; of more, each has one line.
    """
    lines = [*_health(status), *_background(status)]
    if status["account"] is not None:
        lines.append(_accounts(status))
        lines += _book(status["account"])
    instruments = status["instruments"]
    for name, facts in instruments.items():
        symbol = name.partition(":")[2]
        if len(instruments) > whole:
            text = _price(facts["close"], facts) + f"  {facts.get('position', '')}  "
            lines.append(_row(symbol, text, _decision(facts)))
        else:
            lines += _instrument(symbol, facts, status)
    return Text("\n").join(lines)


def _health(status: Status) -> Iterator[Text]:
    state, reasons = status["state"], status["not_ready"]
    yield Text.assemble(
        (state, "bold green" if state == "running" else "bold yellow"),
        "" if status["halted_by"] is None else f" by {status['halted_by']}",
        f"  run {status['run_id']} ({status['kind']}), process {status['pid']}, ",
        f"{status['strategy']} {status['model_id']}".rstrip(),
    )
    progress = f"since this start: {counts_text(status)}; the run is at event {status['sequence']}"
    yield Text(progress, "dim")
    if any(status["not_in_time"].values()):
        counts = ", ".join(f"{count:,} {word}" for word, count in status["not_in_time"].items())
        yield Text(f"bars that did not come in time: {counts}", "dim")
    if outage := status["outage"]:
        yield Text(outage, "yellow")
    if cause := status["without_fills"]:
        yield Text(cause)
    for reason in reasons[:REASONS_SHOWN]:
        yield Text(f"not ready: {reason}", "yellow")
    if (more := len(reasons) - REASONS_SHOWN) > 0:
        yield Text(f"and {more} more; --json has all", "yellow")


def _background(status: Status) -> Iterator[Text]:
    if (parity := status["parity"]) is not None:
        yield parity_text(parity)
    if (notices := status["notices"]) is not None:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in notices.items())
        style = "yellow" if notices["failed"] or notices["dropped"] else "dim"
        yield Text(f"notices: {counts}", style)


def parity_text(facts: Status) -> Text:
    """Return what the last daily replay of the run showed, and what comes next."""
    now = "; a day is replayed now" if facts["checking"] else ""
    if (last := facts["last"]) is None:
        first = now.removeprefix("; ") or f"first replay at {minute_text(facts['due_ms'])}"
        return Text(f"parity: {first}", "dim")
    style = {"identical": "dim", "different": "bold red"}.get(last["outcome"], "yellow")
    return Text(f"parity: {visible(last['reason'])}{now}", style)


def _accounts(status: Status) -> Text:
    account = status["account"]
    text = Text.assemble(("equity ", "dim"), (money_text(Decimal(account["equity"])), "bold"))
    titled = {f"{name} shadow": Decimal(held["equity"]) for name, held in status["shadows"].items()}
    if "margin_used" in account:
        titled["margin used"] = Decimal(account["margin_used"])
    titled["fees and funding"] = Decimal(account["fees_paid"]) + Decimal(account["funding_paid"])
    for title, amount in titled.items():
        text.append(f"  {title} ", "dim").append(money_text(amount))
    if (ratio := account.get("maintenance_ratio")) is not None:
        text.append(f"  maintenance ratio {percent(ratio, 1)}, liquidated at 100 %", "dim")
    return text


def _book(account: Status) -> Iterator[Text]:
    """Yield the exposure of all positions, if there are any."""
    net, gross, equity = (
        Decimal(account[name]) for name in ("net_exposure", "gross_exposure", "equity")
    )
    if not gross:
        return
    share = f", {percent(float(gross / equity), 1)} of equity" if equity > 0 else ""
    held = f"{money_text(net, signed=True)} net, {money_text(gross)} gross{share}"
    yield Text.assemble(("exposure ", "dim"), held)


def _instrument(symbol: str, facts: Status, status: Status) -> Iterator[Text]:
    closed = datetime.fromtimestamp(facts["close_time_ms"] / 1000, UTC)
    category = facts["instrument"].partition(":")[0]
    place = f"  {category}  closed {closed:%Y-%m-%d %H:%M} UTC"
    yield _row(symbol, (_price(facts["close"], facts), "bold"), (place, "dim"))
    if "action" not in facts:
        yield _row("warming", (f"{count_of(status['warmup_bars'], 'bar')} taken in", "dim"))
    else:
        yield _row("position", facts.get("position", NOTHING))
        if "margin" in facts:
            yield _row("margin", _margin(facts))
        yield _row("decision", _decision(facts))
        gates = facts["gates"]
        for gate in gates:
            if not gate["passed"]:
                yield _row("gate", ("✗ ", "red"), (gate["gate"], "bold"), (_against(gate), "dim"))
        passed = sum(bool(gate["passed"]) for gate in gates)
        yield _row("gates", ("✓ ", "green"), f"{passed} of {len(gates)} passed")
    if (forecast := facts["forecast"]) is not None:
        yield _row("forecast", _forecast(forecast))
        if "confidence_entropy" in forecast:
            attention = (
                f"confidence_entropy {_number(forecast['confidence_entropy'])}  "
                f"regime {facts.get('regime', NOTHING)}  "
                f"recent mass {_number(forecast['recent_mass'])}"
            )
            yield _row("attention", attention)


def _row(label: str, *parts: Text | str | tuple[str, str]) -> Text:
    return Text.assemble((f"{label:<{LABEL_CELLS}}", "dim"), *parts)


def _price(price: str, facts: Status) -> str:
    return f"{Decimal(price):,.{facts['price_decimals']}f}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _margin(facts: Status) -> str:
    return (
        f"{money_text(Decimal(facts['margin']))} at {facts['leverage']} x, "
        f"liquidated at {_price(facts['liquidation_price'], facts)}"
    )


def _decision(facts: Status) -> Text:
    if "action" not in facts:
        return Text("warming", "dim")
    action, refused_by = Action(facts["action"]), facts["refused_by"]
    text = Text(action.value, ACTION_STYLES.get(action, "bold"))
    if refused_by is not None:
        return text.append(f"  {verdict(action, refused_by, facts['reason'])}", "yellow")
    if facts["unfilled"] is not None:
        return text.append(f"  unfilled: {facts['unfilled']}", "yellow")
    return text.append(f"  {facts['reason']}".rstrip(), "dim")


def _against(row: Status) -> str:
    """Return the measure and the threshold of a gate that failed; a switch has no threshold."""
    gate, declared = row["gate"], GATES.get(row["gate"])
    measure = measured(gate, row["measure"])
    if declared is not None and declared.is_switch:
        return f"  {measure}"
    sign = "≥" if declared is None or declared.at_least else "≤"
    threshold = measured(gate, row["threshold"])
    return f"  {measure}, needs {sign} {threshold}  {unit_beside(gate)}".rstrip()


def _forecast(forecast: Status) -> str:
    if (deadline_ms := forecast.get("deadline_ms")) is not None:
        return f"none within {deadline_ms} ms"
    parts = []
    if (mean := forecast.get("mean_return")) is not None:
        stdev = forecast.get("stdev_return")
        parts.append(
            percent(mean, 3, signed=True) + ("" if stdev is None else f" ± {percent(stdev, 3)}")
        )
    for name, title in (("p_down", "down"), ("p_flat", "flat"), ("p_up", "up")):
        if (share := forecast.get(name)) is not None:
            parts.append(f"{title} {percent(share, 0)}")
    return f"in {forecast['horizon']} bars: {', '.join(parts) or NOTHING}"
