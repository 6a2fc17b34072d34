"""``docs/glossary.md``: every declared name with its one meaning.

Names and meanings are read from the declarations: the keys of the configuration, the columns of the
views, the gates, the labels of tables and the keys of the status. What its declaration does not
explain is explained here, in ``WORDS`` and ``LABELS``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import builders
from fakes import ManualClock
from programs import ROOT

from tracepaper.daemon.config.loading import SECTIONS
from tracepaper.daemon.config.values import description
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.gates.gate import GATES, gate_order
from tracepaper.strategies.types.decisions import Position

WORDS: Final[Mapping[str, str]] = {
    "absent, late, repaired": "what bars of a gap are: they never came; REST gave the first more "
    "than one interval after its close; REST gave them before that",
    "account": "cash and positions; a run has one, a trader's own is *your account*",
    "allowed, refused": "whether every gate passed a decision; a refused one names the first gate "
    "that failed",
    "bar": "prices and volume of one interval; in a file it is a *candle*",
    "buy and hold": "bought with all the cash at the first bar after the warm-up and kept",
    "checkpoint": "a trained model's folder of weights and card",
    "confidence": "what the key `gate.confidence` bounds: `gate.confidence_by` chooses the gate "
    "`confidence_entropy`, `confidence_calibrated` or `confidence_margin`",
    "costs": "fees, spread, slippage and liquidation together; fees are only what the exchange "
    "takes, funding is no cost of a fill",
    "decision": "what a strategy and the gates made of one closed bar",
    "fee, fees": "of one fill; of several, with those of an account since its start as `fees_paid`",
    "fill": "an order, or a part of it, that was executed at one price and time",
    "gate": "a check with one measure and one threshold that allows or refuses a decision",
    "gap": "a stretch of time without bars at the time at which they were due",
    "held": "buy and hold at the run's own mean exposure",
    "horizon": "bars ahead to which a forecast or a judgement looks",
    "instrument, symbol": "`linear:BTCUSDT`, and the exchange's name alone, `BTCUSDT`",
    "interval": "length of a bar; of a bar made of several it is a *timeframe*",
    "market time": "the exchange's clock in UTC milliseconds; *wall time* is the machine's",
    "order": "an instruction to buy or sell; it fills, rests, is canceled or rejected",
    "position": "what an account holds of an instrument, signed",
    "record": "the database's rows of a run, in a chain of digests",
    "run": "one configuration from its start to its end, over all restarts",
    "shadow account": "an account beside the run's that trades by another rule",
    "signal": "what a strategy answers at a bar: an action, a strength and a reason",
    "step": "one event with all that followed from it; it has a sequence in the run",
    "trade": "a round trip: from the first fill of a position to the fill that closes it",
    "unfilled": "asked for and passed by every gate, but without an order, or not filled",
    "warm-up": "the bars that strategy and model read before the first decision",
}
"""Words of all pages."""

LABELS: Final[Mapping[str, str]] = {
    "account": "the run's account or a shadow account, by name",
    "account_quantity": "quantity that your account filled",
    "action": "the decision's action",
    "actions": "decisions by action since this start",
    "after": "value with the change; bars after a fill",
    "against": "share of the fills after which the close was worse than their price",
    "apart": "bits from a head to the others of its layer",
    "bar_s": "seconds of market time since its newest bar closed",
    "bars": "number of bars",
    "bars_per_1000": "bars of 1,000 that the rule trades",
    "base_coin": "the coin that is bought and sold",
    "beaten": "share of random timings that ended with less",
    "became": "what became of an order by list",
    "below_zero_ms": "when nothing of the equity was left for the first time",
    "beside": "the value in the run beside it",
    "bias_bp": "mean difference of paper's price from the real one, in basis points",
    "cagr": "return a year, compounded",
    "calmar": "return a year over the worst drawdown",
    "cause": "why the bars of a gap did not come in time, or the largest part of a shortfall",
    "christoffersen_p": "p of Christoffersen's test of breaches",
    "close_time_ms": "time at which the bar closed, UTC ms",
    "commit_s": "seconds since the newest step was stored",
    "confidence": "1 minus the mean normalised entropy of one head",
    "corrected": "p value corrected for all looks at the same data",
    "count": "number of what the table's title names",
    "counters": "events of the feed since this start, by name",
    "days": "UTC days with a value",
    "days_judged": "UTC days on which the model was judged",
    "decided_bar": "the bar that was decided",
    "decision": "the decision, as its sequence or time",
    "decisions": "number of decisions",
    "deflated_sharpe": "probability that the Sharpe ratio is above that of the best of all trials",
    "difference": "difference of the two models",
    "drawdown_bars": "bars of the longest time below the last peak of equity",
    "effective_bars": "number of equally weighted bars with the same entropy",
    "end": "equity at the end",
    "equity": "cash plus positions, at the mark",
    "event_share": "share of the similarity of attention rows that is by bar, not by age",
    "expected": "forecast return, in basis points",
    "exposure": "share of the bars with a position",
    "feature": "the model's input by name",
    "fee": "fee of a fill",
    "feeds": "ages of the newest data, by instrument",
    "fees_paid": "fees since the start of the account, or of the part",
    "filled": "quantity filled",
    "fills": "number of fills",
    "focus": "attention on the heaviest distant bars of a head",
    "forecast": "what the model expected, or where it stood when it was made",
    "forecaster": "the model or baseline that made the forecast",
    "frame_s": "seconds since the newest message of the exchange",
    "from": "first value or time of the part",
    "from_ms": "first time of the gap or part",
    "funding_paid": "funding that was paid, less what was received",
    "gate": "the gate by name",
    "gates": "each gate with measure, threshold and whether it passed",
    "gross": "profit at the reference prices, before costs and funding",
    "gross_exposure": "mean of the position's size over equity, without its sign",
    "group": "what was removed or changed: trades, days, how orders fill, or a parameter",
    "half_life": "the age within which half of the attention lies",
    "halted_by": "the gate that forbids new exposure; null if none does",
    "head": "the head of a layer",
    "held": "position after the fill",
    "hit_rate": "share of the trades with a profit",
    "holdout": "bars that training did not see",
    "horizon": "bars ahead",
    "ic": "mean rank correlation of a column with coming returns (information coefficient)",
    "instrument": "`category:SYMBOL`, or the symbol alone",
    "instruments": "the newest bar and decision by instrument",
    "kept_better": "how much better the signals that a gate passed were than those that it refused",
    "kind": "which kind the row is of",
    "kupiec_p": "p of Kupiec's test that breaches are as frequent as forecast",
    "large": "fills of more than a tenth of their candle's volume",
    "latencies": "time that decision, model and commit took since this start",
    "lean": "probability of a rise less that of a fall",
    "level": "age of bars, from the newest",
    "leverage": "leverage of positions on margin",
    "liquidation": "what positions lost after the price that called, until they were closed",
    "local_mass": "share of the attention on the newest rows",
    "lost": "depth of a drawdown; mean loss beyond the tail",
    "lowest_equity": "the lowest equity",
    "margin_used": "margin that all positions tie up",
    "market_ms": "market time, UTC ms",
    "marks": "what a head is, and the quantities that its attention depends on",
    "max_drawdown": "largest fall of equity from a peak, as a fraction",
    "mean": "mean of the table's value",
    "mean_against": "mean change where the close was worse than the fill",
    "mean_age": "mean age of the attended bars",
    "mean_day": "mean return of a UTC day, with the error of that mean",
    "mean_exposure": "mean of the position over equity, with its sign",
    "mean_for": "mean change where the close was better than the fill",
    "mean_return": "mean of the returns",
    "meaning": "what a gate measures",
    "measure": "what a gate measured, or what is compared",
    "measured": "signals whose horizon lies within the run",
    "median": "median of the table's value",
    "median_end": "median equity at the end of random timings",
    "median_held_ms": "median time that a trade was held",
    "metric": "the judged quantity",
    "model": "the model by name",
    "model_id": "the model that decides",
    "money": "an amount in quote currency",
    "most": "largest of the table's value",
    "net": "profit after costs; of an account after funding too",
    "not_in_time": "bars that were absent, late or repaired since this start",
    "not_ready": "why the daemon is not ready, in sentences",
    "notices": "notices by outcome since this start",
    "open_time_ms": "open time of the bar, UTC ms",
    "order_id": "the order: sequence and ordinal of its creation",
    "orders": "number of orders",
    "others": "share of the attention on other symbols",
    "outage": "which host does not answer, for how long, and the next try; null if all do",
    "outcome": "what was forecast: a quantity, its quantile, or its value after some bars",
    "over_run": "mean over the whole run",
    "own": "share of the attention on the symbol itself",
    "own_share": "the decided bar's share of the attribution",
    "p": "p-value",
    "p95": "value that one of twenty exceeds",
    "parity": "the last check of a day against its replay; null before the first",
    "part": "the part of the run",
    "passed": "whether a gate passed; mean return of the signals that it passed",
    "peak_ms": "time of the peak before the fall",
    "period_bars": "period at which a head's attention repeats, in bars",
    "period_correlation": "correlation of the attention with that period",
    "pid": "the daemon's process",
    "position": "what is held, as a side or in words",
    "position_side": "the side of hedge mode",
    "positions": "number of positions",
    "price": "mean price of the fills",
    "price_decimals": "decimals of a price",
    "probabilistic_sharpe": "probability that the true Sharpe ratio is above 0",
    "profit_factor": "profits of the winning trades over losses of the others",
    "quantity": "how much, in base currency",
    "quote_s": "seconds of market time since its newest quote",
    "random_high": "upper end of what a random gate would have gained",
    "random_low": "lower end of what a random gate would have gained",
    "ready": "whether the daemon may decide",
    "realised": "what came true of the forecast",
    "realized_pnl": "profit of what was closed, before fees",
    "reason": "why: the strategy's reason, or the order's",
    "recording": "the process that records frames; null if none runs",
    "recovered_ms": "time at which equity was at its peak again",
    "refusals": "refused decisions by gate since this start",
    "regime": "regime of the market",
    "repeated": "whether sign and credibility are the same on every holdout",
    "retraining": "when a model is or was trained; null if none is",
    "return": "change of equity as a fraction of the start",
    "revisions": "bars that the exchange changed after their close",
    "rule": "the rule by which it traded",
    "seed": "the seed of what was drawn",
    "sequence": "place of the step in the run",
    "shadows": "shadow accounts by name",
    "share": "share of what the table's title names",
    "sharpe": "mean over standard deviation of daily returns, a year",
    "shipping": "the process that copies steps to a server; null if none runs",
    "unknown": "fills whose candle has no volume, or has not come yet",
    "witness": "dates of the record by witnesses; null without one",
    "drift": "comparison with a backtest; null without one",
    "heading": "what is compared, with its unit",
    "reference": "value of the backtest",
    "allowed": "what the backtest allows at the newest look",
    "shortfall": "loss of the breaches over the forecast loss",
    "side": "buy or sell, long or short",
    "signals": "number of signals",
    "since_ms": "time from which bars, decisions, fills and counters are counted",
    "slippage": "what fills cost beyond the spread",
    "sortino": "the Sharpe ratio over falls alone",
    "spread": "what fills cost for half the distance of bid and ask",
    "stability": "how alike a head's attention is from bar to bar",
    "started_ms": "wall time of the start",
    "state": "`running` or `halted`",
    "status": "state of the order",
    "std_bp": "standard deviation, in basis points",
    "strategy": "the strategy's name",
    "symbol": "the symbol",
    "symbols": "number of symbols",
    "tag": "name that the strategy gave an order",
    "tail": "the value at risk that is judged",
    "target_after": "position that the changed run wanted",
    "target_before": "position that the recorded run wanted",
    "times_even": "attention on a bar over that of an even spread",
    "timings": "number of random timings",
    "trades": "number of closed trades",
    "trades_of": "trades of the group",
    "trials": "number of configurations that were tried",
    "trigger": "price that triggers a stop",
    "trough_ms": "time of the lowest equity of the fall",
    "turnover": "notional of the fills over equity, a year",
    "unfilled": "why an allowed decision ordered less than its target",
    "unit": "the unit of a measure",
    "unrealized_pnl": "profit of the open position, at the mark",
    "until": "last value or time of the part",
    "until_ms": "end of the gap or part, exclusive",
    "uses": "recipes that used the holdout",
    "value": "value of the metric",
    "variance": "variance that came true",
    "verdict": "what the comparison says",
    "volatility": "standard deviation of returns, a year, or as it came true",
    "volatility_day": "standard deviation of daily returns",
    "warm_at_ms": "when the warm-up's bars will be there; null once they are",
    "warmup_bars": "accepted bars without a decision since this start",
    "weight": "share of an attribution",
    "why": "the cause of a change",
    "without_fills": "why nothing filled, in sentences; null once an order filled",
    "won": "share of the group's trades with a profit",
    "beta": "move of a coin for one of the largest coin of the book",
    "case": "what is assumed to happen to the open positions",
    "coin": "coin of the open positions",
    "correlation": "correlation of a coin's returns with those of the largest coin of the book",
    "distance": "way from the mark to the price of liquidation, as a share of the mark",
    "mark": "mark price of a position",
    "method": "how past returns were used",
    "value_at_risk": "loss that the next period exceeds with the stated probability",
    "net_exposure": "value of all positions, shorts below zero",
}
"""Labels and keys of the status that no column of a view explains."""

SYNONYMS: Final[Mapping[str, str]] = {
    r"\w+_at": "a time ends in `_ms` or `_iso`",
    r"commissions?": "fee",
    r"drawn ?down": "drawdown",
    r"(missing|lost|unrepaired) bars?": "absent",
    r"(backfilled|recovered) bars?": "repaired",
    r"delayed": "late",
    r"holes?": "gap",
    r"missed closes?": "absent",
    r"buy-and-hold|buy & hold|hodl": "buy and hold",
    r"buy_and_hold": "held, or buy and hold",
    r"round trips": "trades",
    r"executions?": "fill",
    r"rejected decisions?|vetoed": "refused",
    r"burn-in|warmup period|start-up candles": "warm-up",
    r"p&l|pnl of": "profit",
    r"liquidation at": "liquidated at",
    r"unix|epoch": "UTC ms",
}
"""A pattern of names and meanings that must not occur, and the word in its place."""

_LABELLED: Final = frozenset({"Figure", "of_field", "of_row", "of_view"})
FORMS: Final = (
    "`x_ms` is a time in UTC milliseconds, or a length in milliseconds, and `x_iso` the same time "
    "as ISO 8601 text (`x_utc` in a frame). `x_text` is the exact decimal of `x`. `x_error` is the "
    "error of `x` by UTC day. Fractions, not percent, are stored and computed."
)


def labels() -> dict[str, list[str]]:
    """Return the key of every figure of a table under ``replay/``, with its titles."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "replay").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (label := _label(node)) is not None and label[1]:
                titles = found.setdefault(label[0], [])
                titles += [label[1]] if label[1] not in titles else []
    return dict(sorted(found.items()))


def _label(node: ast.AST) -> tuple[str, str] | None:
    """Return key and title of a call that declares a figure by two constants, else None."""
    if not isinstance(node, ast.Call) or len(node.args) < 2:
        return None
    function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
    if not isinstance(function, ast.Name) or function.id not in _LABELLED:
        return None
    key, title = node.args[:2]
    if not isinstance(key, ast.Constant) or not isinstance(title, ast.Constant):
        return None
    return str(key.value), str(title.value)


def columns() -> dict[str, str]:
    """Return every column of the views with its meaning; derived columns are left out.

    If views differ, each meaning follows the name of its first view.
    """
    meanings: dict[str, dict[str, str]] = {}
    for view in VIEWS:
        names = {column.name for column in view.columns}
        for column in view.columns:
            stem = column.name.removesuffix("_iso").removesuffix("_text")
            if stem == column.name or not names & {stem, f"{stem}_ms"}:
                meanings.setdefault(column.name, {}).setdefault(column.doc, view.name)
    return {
        name: "; ".join(f"`{view}`: {doc}" for doc, view in docs.items())
        if len(docs) > 1
        else next(iter(docs))
        for name, docs in sorted(meanings.items())
    }


def status_keys() -> list[str]:
    """Return the keys of a running daemon's status, and of its parts by instrument and feed."""
    monitor = Monitor(run=builders.run(), clock=ManualClock(builders.START_MS), counters={})
    decided, forecast = builders.decision(), builders.forecast()
    monitor.observe(
        builders.step(
            builders.bar(), decided=decided, prediction=forecast, position=Position(quantity=1)
        )
    )
    status: Any = monitor.status()
    parts = [status["account"], *status["instruments"].values(), *status["feeds"]]
    return sorted({*status, *(key for part in parts for key in part)})


def keys() -> Iterator[tuple[str, str]]:
    """Yield every key of the configuration with the first sentence of its description."""
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            text = " ".join(description(model, key).split())
            yield f"{section}.{field.alias or key}", re.split(r"[.;](?: |$)", text)[0]


def meaning_of(name: str) -> str:
    """Return the meaning of a label or a key of the status; raise ``ValueError`` without one."""
    if (meaning := LABELS.get(name, columns().get(name))) is None:
        raise ValueError(f"{name} has no meaning: write one into LABELS of {__file__}.")
    return meaning


def glossary_page() -> str:
    """Return the page of every declared name, with its meaning."""
    parts = [
        "# Glossary",
        "One word means one thing, in code, record, answers and pages. " + FORMS,
        "## Words",
        _rows("| word | meaning |", WORDS.items(), quoted=False),
        "## Gates",
        _rows("| gate | measure |", ((name, GATES[name].meaning) for name in gate_order())),
        "## Keys of the configuration",
        "[Every key](../deploy/config.example.toml) with its limits and its default.",
        _rows("| key | meaning |", keys()),
        "## Columns of the views",
        (
            "[The views](views.md) say which view has which column. A name with several meanings "
            "has one for each view."
        ),
        _rows("| column | meaning |", columns().items()),
        "## Labels of tables",
        "A report, a comparison and the page show these; JSON has the keys.",
        _rows(
            "| key | shown as | meaning |",
            (
                (key, f"{' / '.join(titles)} | {meaning_of(key)}")
                for key, titles in labels().items()
            ),
        ),
        "## Keys of the status",
        "`tracepaper status --json` and `GET /status` answer with these.",
        _rows("| key | meaning |", ((key, meaning_of(key)) for key in status_keys())),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(head: str, rows: Iterable[tuple[str, str]], *, quoted: bool = True) -> str:
    lines = [f"| {f'`{name}`' if quoted else name} | {text} |" for name, text in rows]
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines])
