"""One run as arrays: what every part of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracepaper.daemon.config import Config
from tracepaper.daemon.fills import Terms
from tracepaper.strategies.types import Instrument

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]
Row = dict[str, Any]


@dataclass(frozen=True)
class Bars:
    """The decided bars of one instrument, oldest first; prices in quote currency."""

    sequence: Ints
    open_time_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    funding: Floats  # the rates settled since the bar before closed, summed; longs pay where > 0


@dataclass(frozen=True)
class Decisions:
    """One decision a closed bar, in the order of the run; figures of the model NaN without one."""

    sequence: Ints
    instrument: Texts
    open_time_ms: Ints
    action: Texts
    allowed: npt.NDArray[np.bool_]
    refused_by: Texts  # empty where allowed
    unfilled: Texts  # why no order was sent for the target; empty where one was, or none needed
    regime: Texts
    mean_return: Floats  # at the gate's horizon
    p_up: Floats
    p_down: Floats
    confidence: Floats
    content_free: Floats
    recent_mass: Floats
    older_mass: Floats
    shift: Floats


@dataclass(frozen=True)
class Ledger:
    """One account of the run; money in quote currency.

    ``equity`` has a value before the first decided bar and then one at each of ``times_ms``,
    the closes of the decided bars. ``held`` is the signed position of every instrument after
    each of its own decided bars.
    """

    name: str
    equity: Floats
    held: dict[str, Floats]
    fills: tuple[Row, ...]
    fees_paid: float
    funding_paid: float
    realized_pnl: float
    unrealized_pnl: float


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report says of a run."""

    database: Path
    run: Row
    instruments: dict[str, Instrument]
    config: Config
    terms: Terms
    every_bar: bool  # False where only steps that traded, and the ends of days, are kept
    times_ms: Ints
    bars: dict[str, Bars]
    decisions: Decisions
    account: Ledger
    twins: tuple[Ledger, ...]
    gaps: tuple[Row, ...]
    thresholds: dict[str, float]  # of every gate, as they were last

    @property
    def interval_ms(self) -> int:
        """The length of a bar."""
        return int(self.run["interval_ms"])

    @property
    def cost_rate(self) -> float:
        """What one fill costs by configuration, as a fraction of its notional."""
        return self.terms.round_trip / 2
