"""Effects of splits and dividends on prices, bars and positions, in exact integers.

The rules are docs/stocks.md, K16 to K25.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tracepaper.strategies.apportion import rounded_parts
from tracepaper.strategies.types.market import Bar, CorporateAction, Instrument
from tracepaper.strategies.units import (
    MONEY_SCALE,
    RATE_SCALE,
    Notional,
    divide_half_even,
    paid_for,
)


class ShareTerms(NamedTuple):
    """The scales of a share that corporate actions need."""

    step: int  # of quantities
    share: int  # one whole share
    notional: Notional

    @classmethod
    def of(cls, instrument: Instrument) -> ShareTerms:
        """Return the terms of *instrument*."""
        share = 10**instrument.quantity_decimals
        return cls(instrument.quantity_step, share, Notional.of(instrument))


class Entitlement(NamedTuple):
    """The result of an action for a position: the shares left, and the money paid."""

    quantity: int
    paid: int
    entry: int  # entry notional of the fraction paid out


def entitlement(
    action: CorporateAction, quantity: int, entry_notional: int, terms: ShareTerms
) -> Entitlement:
    """Apply *action* to *quantity* (not negative), which was held at the previous close.

    A split leaves whole quantity steps; the fraction is paid at the adjusted previous close.
    """
    if not action.is_split:
        return Entitlement(quantity, paid_for(quantity, terms.share, action.amount), 0)
    left = whole_steps(action, quantity, terms.step)
    fraction = quantity * action.new - left * action.old  # in 1 / old of a new share
    if not fraction:
        return Entitlement(left, 0, 0)
    notional = terms.notional
    value = action.close * fraction * notional.multiplier
    paid = divide_half_even(value, action.new * notional.divisor)
    entry = divide_half_even(entry_notional * fraction, quantity * action.new)
    return Entitlement(left, paid, entry)


def entitlement_parts(
    action: CorporateAction,
    whole: Entitlement,
    parts: Sequence[tuple[int, int]],
    terms: ShareTerms,
) -> list[Entitlement]:
    """Share *whole* among the *parts* of a position, each (quantity, entry notional).

    Each part's steps and money are rounded down, and the rest goes to the largest remainders. A
    part that gets more shares than its due pays the others for them, at the price of the fraction.
    """
    quantities = [quantity for quantity, _ in parts]
    if not action.is_split:
        due = [held * action.amount for held in quantities]
        paid = rounded_parts(whole.paid, due, terms.share * (RATE_SCALE // MONEY_SCALE))
        return [Entitlement(held, part, 0) for held, part in zip(quantities, paid, strict=True)]
    shares, new = whole.quantity // terms.step, [held * action.new for held in quantities]
    left = [terms.step * steps for steps in rounded_parts(shares, new, action.old * terms.step)]
    fractions = [
        before * action.new - after * action.old
        for before, after in zip(quantities, left, strict=True)
    ]
    price, unit = action.close * terms.notional.multiplier, action.new * terms.notional.divisor
    paid = rounded_parts(whole.paid, [price * fraction for fraction in fractions], unit)
    return [
        Entitlement(
            after,
            part,
            divide_half_even(entry * fraction, held * action.new) if fraction > 0 else part,
        )
        for (held, entry), after, fraction, part in zip(parts, left, fractions, paid, strict=True)
    ]


def whole_steps(action: CorporateAction, quantity: int, step: int) -> int:
    """Return *quantity* after a split, without the fraction of a *step*."""
    return quantity * action.new // (action.old * step) * step


def adjusted_price(action: CorporateAction, price: int) -> int:
    """Return a *price* from before a split as a price after it, rounded half to even."""
    return divide_half_even(price * action.old, action.new)


def adjusted_bar(action: CorporateAction, bar: Bar) -> Bar:
    """Return a *bar* from before a split, adjusted to the shares after it."""
    return replace(
        bar,
        open=adjusted_price(action, bar.open),
        high=adjusted_price(action, bar.high),
        low=adjusted_price(action, bar.low),
        close=adjusted_price(action, bar.close),
        volume=divide_half_even(bar.volume * action.new, action.old),
    )


def bar_after(splits: Iterable[CorporateAction], bar: Bar) -> Bar:
    """Return *bar* adjusted for all later *splits* of its instrument."""
    for action in splits:
        if action.instrument == bar.instrument and bar.open_time_ms < action.market_ms:
            bar = adjusted_bar(action, bar)
    return bar
