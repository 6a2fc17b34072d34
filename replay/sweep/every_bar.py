"""What figures need of every bar, taken from a run as it goes: its log keeps only what acted.

A record that is read back from such a log lacks bars, positions and equity between trades; with
these it is the record of the full log, as far as the figures of an account go.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tracepaper.replay.report.record import (
    Bars,
    Decisions,
    RunRecord,
    funding_in_bars,
    quantity_steps,
    without_dust,
)
from tracepaper.strategies.types import MONEY_SCALE, Bar, Funding, Step


class EveryBar:
    """Takes in the steps of one run, in order."""

    def __init__(self) -> None:
        self._instruments: list[str] = []
        self._rows: list[tuple[int, int, int, int, int, int, int]] = []
        self._refused_by: list[str] = []
        self._settled: dict[str, list[tuple[int, int]]] = {}
        self._before: int | None = None  # the equity before the first decision

    def observe(self, step: Step) -> None:
        """Take in one step."""
        event = step.event
        if isinstance(event, Funding):
            self._settled.setdefault(event.instrument, []).append((event.market_ms, event.rate))
        if step.decision is None or step.position is None or not isinstance(event, Bar):
            if not self._rows and step.position is not None:
                self._before = step.account.equity
            return
        self._instruments.append(event.instrument)
        self._rows.append(
            (event.open_time_ms, event.open, event.high, event.low, event.close,
             step.position.quantity, step.account.equity)
        )  # fmt: skip
        self._refused_by.append(step.decision.refused_by or "")

    def whole(self, record: RunRecord) -> RunRecord:
        """Return *record*, read from the log, with every bar of this run's account."""
        columns = np.array(self._rows, dtype=np.int64).T
        opened, *prices, quantity, equity = columns
        decisions = self._decisions(opened)
        times = record.closes_of(np.unique(opened))
        curve = np.empty(times.size)
        # Several instruments close at one time: the last of them has the whole account.
        curve[np.searchsorted(times, opened, side="right")] = (
            equity.astype(np.float64) / MONEY_SCALE
        )
        before = int(equity[0]) if self._before is None else self._before
        steps = quantity_steps(record.instruments)
        bars, held = {}, {}
        for name, places in decisions.places.items():
            known = record.instruments[name]
            scale = 10.0**known.price_decimals
            opens, highs, lows, ends = (part[places].astype(np.float64) / scale for part in prices)
            times_of = opened[places]
            settled = self._settled.get(name, [])
            funding = funding_in_bars(record.closes_of(times_of), settled)
            bars[name] = Bars(places, times_of, opens, highs, lows, ends, funding)
            own = quantity[places].astype(np.float64) / 10.0**known.quantity_decimals
            held[name] = without_dust(own, steps[name])
        account = replace(
            record.account,
            equity=np.concatenate(([before / MONEY_SCALE], curve)),
            held=held,
        )
        return replace(
            record,
            every_bar=True,
            times_ms=times,
            bars=bars,
            decisions=decisions,
            account=account,
        )

    def _decisions(self, opened: np.typing.NDArray[np.int64]) -> Decisions:
        size = opened.size
        nothing, unknown = np.full(size, ""), np.full(size, np.nan)
        refused_by = np.array(self._refused_by)
        return Decisions(
            sequence=np.arange(size),
            instrument=np.array(self._instruments),
            open_time_ms=opened,
            action=nothing,
            allowed=refused_by == "",
            refused_by=refused_by,
            unfilled=nothing,
            regime=nothing,
            mean_return=unknown, p_up=unknown, p_down=unknown, confidence=unknown,
            content_free=unknown, recent_mass=unknown, older_mass=unknown, shift=unknown,
        )  # fmt: skip
