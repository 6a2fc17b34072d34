"""Liquidations since the previous decision: the closed positions, the reason and the cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tracepaper.daemon.broker.margin import CALLED
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_rows import RunRows
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.types.decisions import FillModel, LedgerKind
from tracepaper.strategies.types.market import Side

_REALIZED: Final = LedgerKind.REALIZED.value
_FEE: Final = LedgerKind.LIQUIDATION_FEE.value


@dataclass(frozen=True)
class Liquidation:
    """The liquidation of one position, or with cross margin of the account, at one price."""

    fills: tuple[Row, ...]  # of ``v_fills``; empty if canceled orders were enough
    canceled: int  # resting orders that the margin call canceled
    realized: float  # profit of the closed positions, negative for a loss
    fee: float

    @property
    def cost(self) -> float:
        """The amount that left the cash balance."""
        return self.fee - self.realized

    @property
    def slippage(self) -> float:
        """The part of the cost between the price of the call and the prices of the fills."""
        return sum(
            (fill["reference_price"] - fill["price"])
            * fill["quantity"]
            * (1 if fill["side"] == Side.SELL else -1)
            for fill in self.fills
        )

    @property
    def sentence(self) -> str:
        """The closed positions, their prices, the reason and the cost, in two sentences."""
        if not self.fills:
            return f"{capital(CALLED)}: {_counted(self.canceled)} canceled, which was enough."
        why = "; ".join(dict.fromkeys(fill["reason"] for fill in self.fills))
        text = f"Liquidated: {'; '.join(map(self._closed, self.fills))}, as {why}"
        if self.canceled:
            text += f", after {_counted(self.canceled)} canceled"
        text += (
            f". It cost {self.cost:,.2f}: {-self.realized:,.2f} of realized loss and "
            f"{self.fee:,.2f} of fees"
        )
        if round(self.slippage, 2):
            text += f"; {self.slippage:,.2f} of the loss is the move from trigger to close"
        return f"{text}."

    def _closed(self, fill: Row) -> str:
        side = "long" if fill["side"] == Side.SELL else "short"
        symbol = fill["instrument"].partition(":")[2]
        return (
            f"{side} {fill['quantity_text']} {symbol}, triggered at {fill['reference_price_text']} "
            f"and closed at {fill['price_text']}"
        )


def capital(words: str) -> str:
    """Return *words* with a capital first letter."""
    return f"{words[:1].upper()}{words[1:]}"


def _counted(orders: int) -> str:
    return "one resting order was" if orders == 1 else f"{orders} resting orders were"


def liquidations_of(
    reader: Reader, views: RunViews, decision: Row, config: Mapping[str, Any]
) -> tuple[Liquidation, ...]:
    """Return the liquidations since the previous decision of the same instrument.

    With cross margin those of the account, else those of the instrument.
    """
    margin = config["account"]["margin"]
    if margin == "none":
        return ()
    stored = reader.stored_run(views.run_id)
    names = [item.id for item in stored.run.instruments]
    place, last = names.index(decision["instrument"]), decision["sequence"]
    rows = RunRows(reader.connection, stored.run_key)
    before = rows.decided_at((0, last - 1), instrument=place, newest=True)
    steps = rows.liquidated((0 if before is None else before + 1, last), CALLED)
    if not steps:
        return ()
    is_cross = margin != "isolated"
    fills = views.rows("v_fills", sequence=steps, model=FillModel.LIQUIDATION.value)
    money = views.rows("v_ledger", sequence=steps, kind=(_REALIZED, _FEE))
    canceled = Counter(row["sequence"] for row in views.rows("v_orders", reason=CALLED))
    liquidations = []
    for sequence in steps:
        filled = [fill for fill in fills if fill["sequence"] == sequence]
        if not is_cross:
            filled = [fill for fill in filled if fill["instrument"] == decision["instrument"]]
        for group in [filled] if is_cross else [[fill] for fill in filled]:
            ids = {fill["order_id"] for fill in group}
            lost = [row for row in money if row["order_id"] in ids]
            liquidations.append(
                Liquidation(
                    tuple(group),
                    canceled[sequence],
                    realized=_sum_of(lost, _REALIZED),
                    fee=-_sum_of(lost, _FEE),
                )
            )
    return tuple(liquidations)


def _sum_of(lines: list[Row], name: str) -> float:
    """Return the sum of the ledger lines of the kind *name*."""
    return sum(line["amount"] for line in lines if name == line["kind"])
