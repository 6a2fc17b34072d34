"""The metrics of a running daemon for Prometheus, read from its ``Monitor`` at each request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tracepaper.daemon.http.monitor import Monitor
from tracepaper.strategies.types.decisions import Account
from tracepaper.strategies.types.market import Bar, ParityOutcome
from tracepaper.strategies.units import MONEY_SCALE

Status = Mapping[str, Any]
ACCOUNT_HELP: Final = {
    "cash": "Cash of the paper account, in quote currency.",
    "equity": "Cash and the value of open positions, in quote currency.",
    "realized_pnl": "Profit of closed positions before fees and funding.",
    "unrealized_pnl": "Profit of open positions at the mark.",
    "fees_paid": "Fees paid since the start of the account.",
    "funding_paid": "Funding paid since the start of the account; negative if received.",
}


def registry_of(monitor: Monitor) -> CollectorRegistry:
    """Return a registry with the metrics of *monitor* and of this process."""
    registry = CollectorRegistry()
    registry.register(MonitorCollector(monitor))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class MonitorCollector(Collector):
    """Reads a ``Monitor`` at each scrape; it has no state."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family."""
        monitor = self._monitor
        run = monitor.run
        yield InfoMetricFamily(
            "tracepaper",
            "What runs.",
            {
                "run_id": run.run_id,
                "kind": run.kind.value,
                "version": run.code_version,
                "strategy": run.strategy,
                "model_id": monitor.model_id,
            },
        )
        yield _gauge("ready", "1 while decisions can be made.", float(not monitor.not_ready()))
        halted = "1 after HALT, FLATTEN or the breach of a limit, until RESUME."
        yield _gauge("halted", halted, float(bool(monitor.halted_by)))
        blocked = "1 while another process holds the database's write lock."
        yield _gauge("database_blocked", blocked, float(monitor.is_obstructed))
        if (copied_s := monitor.copied_s()) is not None:
            yield _gauge(
                "backup_seconds", "UTC time of the newest `tracepaper db backup`.", copied_s
            )
        yield from _ages(monitor)
        yield from _latencies(monitor)
        # These start at 0: an alarm on an increase ignores a series that starts at its first count.
        refusals, feed = {"deadline": 0, **monitor.refusals}, {"disconnects": 0, **monitor.counters}
        yield _counted("events", "kind", "Events that the engine consumed.", monitor.events)
        yield _counted("decisions", "action", "Decisions.", monitor.actions)
        yield _counted("refusals", "gate", "Refusals by first failed gate.", refusals)
        yield _counted("feed", "what", "What happened to the feed.", feed)
        yield _counted("fills", "", "Fills of the account.", {"": monitor.fills})
        yield _counted("revisions", "", "Bars revised after the fact.", {"": monitor.revisions})
        for name, metrics_of in _BESIDE.items():
            if (status := monitor.companions.get(name)) is not None:
                yield from metrics_of(status())
        if monitor.last is not None:
            yield from _accounts({"": monitor.last.account, **monitor.shadows})
        yield from _bars(monitor)


def _parity(status: Status) -> Iterable[Metric]:
    until = "UTC end of the day replayed; before the first, the run's start."
    yield _gauge("parity_until_seconds", until, status["since_ms"] / 1000)
    if (last := status["last"]) is None:
        return
    became = "1 for what became of the last daily replay: identical, different or failed."
    outcomes = GaugeMetricFamily("tracepaper_parity_outcome", became, labels=["outcome"])
    for outcome in ParityOutcome:
        outcomes.add_metric([outcome.value], float(outcome.value == last["outcome"]))
    yield outcomes
    yield _gauge("parity_compared", "Decisions that it compared.", last["compared"])
    yield _gauge("parity_identical", "Of them equal in every bit.", last["identical"])


def _notices(status: Status) -> Iterable[Metric]:
    text = "Notices by what became of them: deliveries sent and failed, notices dropped."
    yield _counted("notices", "outcome", text, status)


_BESIDE: Final = {
    "parity": _parity,
    "notices": _notices,
}


def _accounts(accounts: Mapping[str, Account]) -> Iterable[Metric]:
    """Yield the amounts of *accounts* with the label ``shadow``, which is empty for the run's."""
    for name, text in ACCOUNT_HELP.items():
        family = GaugeMetricFamily(f"tracepaper_{name}", text, labels=["shadow"])
        for shadow, account in accounts.items():
            family.add_metric([shadow], getattr(account, name) / MONEY_SCALE)
        yield family


def _bars(monitor: Monitor) -> Iterable[Metric]:
    """Return the price, time, position and confidence at each instrument's newest bar."""
    prices = _of_instruments("price", "Last close.")
    times = _of_instruments("last_bar_close_seconds", "UTC time of its close.")
    positions = _of_instruments("position", "Quantity held.")
    confidences = _of_instruments("confidence_entropy", "Entropy confidence of the last forecast.")
    instruments = {instrument.id: instrument for instrument in monitor.run.instruments}
    for name, step in monitor.bars.items():
        bar, instrument, prediction = step.event, instruments[name], step.prediction
        assert isinstance(bar, Bar)
        prices.add_metric([name], bar.close / 10**instrument.price_decimals)
        times.add_metric([name], bar.close_time_ms / 1000)
        if step.position is not None:
            quantity = step.position.quantity / 10**instrument.quantity_decimals
            positions.add_metric([name], quantity)
        explanation = getattr(prediction, "explanation", None)
        if explanation is not None and explanation.confidence_entropy is not None:
            confidences.add_metric([name], explanation.confidence_entropy)
    return (prices, times, positions, confidences)


def _ages(monitor: Monitor) -> Iterable[Metric]:
    """Yield the ages of data at this scrape; data that was never received has none."""
    intervals = _of_instruments("interval_seconds", "Length of a bar.")
    bars = _of_instruments("bar_age_seconds", "Since the newest bar closed, market time.")
    quotes = _of_instruments("quote_age_seconds", "Since the newest quote, market time.")
    for instrument in monitor.run.instruments:
        intervals.add_metric([instrument.id], monitor.run.interval_ms / 1000)
        for family, age_s in (
            (bars, monitor.bar_age_s(instrument.id)),
            (quotes, monitor.quote_age_s(instrument.id)),
        ):
            if age_s is not None:
                family.add_metric([instrument.id], age_s)
    yield from (intervals, bars, quotes)
    for name, text, newest_s in (
        ("frame_age_seconds", "Since the newest frame of a stream.", monitor.frame_age_s()),
        ("commit_age_seconds", "Since the newest step was stored.", monitor.commit_age_s()),
    ):
        if newest_s is not None:
            yield _gauge(name, text, newest_s)


def _latencies(monitor: Monitor) -> Iterable[Metric]:
    for name, text, took_s in (
        ("decision_seconds", "From a bar's close to its stored decision.", monitor.decision_s),
        ("model_seconds", "One forecast.", monitor.model_s),
        ("commit_seconds", "One step to the disk.", monitor.commit_s),
    ):
        bounds = [*map(str, took_s.bounds), "+Inf"]
        counts = list(zip(bounds, accumulate(took_s.counts), strict=True))
        yield HistogramMetricFamily(
            f"tracepaper_{name}", text, buckets=counts, sum_value=took_s.total_s
        )


def _of_instruments(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tracepaper_{name}", text, labels=["instrument"])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tracepaper_{name}", text, value)


def _counted(name: str, label: str, text: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"tracepaper_{name}", text, labels=[label] if label else [])
    for key, count in counts.items():
        family.add_metric([key] if label else [], count)
    return family
