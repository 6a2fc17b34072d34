"""``PortfolioStrategy``: one object that decides for every instrument of a close at once.

The rules are docs/several.md, P1 to P8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

from tracepaper.strategies.outlook import Outlook
from tracepaper.strategies.signals import Orders, Signal
from tracepaper.strategies.strategy import CORE_GATES, FreshState, Strategy
from tracepaper.strategies.types import Action, Bar

NOT_NAMED: Final = Signal(Action.HOLD, "not named by the portfolio")
"""What an instrument does that an answer leaves out."""

SHARE_OF: Final = "from_"
"""How the note begins that says how much of where a decision looked is of one symbol."""


class PortfolioStrategy(ABC):
    """One strategy for all instruments of a run; a user derives from it.

    What it remembers must follow from the last ``warmup`` bars of each instrument alone, in
    whatever order the bars of one time come: after a restart it is fed exactly those. Whatever else
    it has to remember belongs into ``self.state``, an instance of the class's ``State``.
    """

    State: type[Struct] | None = None

    gates: frozenset[str] = CORE_GATES
    warmup: int = 1  # bars of each instrument that are known wherever it is asked about it
    sees_account: bool = False  # ``account`` is given: decisions then depend on fills
    reads_history: bool = True  # False spares the engine keeping bars for ``history``
    frames: tuple[str, ...] = ()  # higher time frames of each instrument, for ``frame``
    frames_warmup: Mapping[str, int] = MappingProxyType({})  # their bars, where not ``warmup``
    books: int = 0  # of each ``now.depth``, the newest
    horizon: int | None = None  # bars that a signal speaks for; None where it speaks until changed
    needs_forecast: bool = False
    exits_freely: bool = False  # judgement gates never hold up a FLAT: it is not the model's
    twins: tuple[str, ...] = ()  # shadow accounts: "ungated" skips the judgement gates
    symbols: tuple[str, ...] = ()  # the run's, in their order; set before the first bar
    state: Any = FreshState()  # an instance of State

    def observe(self, bar: Bar) -> None:  # noqa: B027 - a strategy without memory needs none
        """Take in a closed bar of any instrument; called once for every bar, warm-up included."""

    @abstractmethod
    def decide(self, now: Mapping[str, Outlook]) -> Mapping[str, Signal | Orders]:
        """Return what to hold, or what to order, by symbol; who is left out holds.

        Asked once a close, after ``observe`` of all of its bars and before the first of its
        decisions. *now* holds the symbols whose bars came together and whose warm-up is known, in
        the order of the run: one alone where a bar came late. An answer for a symbol that is not
        among them does nothing.
        """


class PortfolioMember(Strategy):
    """One instrument of a portfolio strategy: it is gated, sized and recorded by itself."""

    def __init__(self, portfolio: PortfolioStrategy) -> None:
        self.portfolio = portfolio
        self.gates = portfolio.gates
        self.warmup = portfolio.warmup
        self.sees_account = portfolio.sees_account
        self.reads_history = portfolio.reads_history
        self.frames = portfolio.frames
        self.frames_warmup = portfolio.frames_warmup
        self.books = portfolio.books
        self.horizon = portfolio.horizon
        self.needs_forecast = portfolio.needs_forecast
        self.exits_freely = portfolio.exits_freely
        self.twins = portfolio.twins
        self.answer: Signal | Orders = NOT_NAMED

    def observe(self, bar: Bar) -> None:
        """Show *bar* to the portfolio."""
        self.portfolio.observe(bar)

    def decide(self, now: Outlook) -> Signal | Orders:  # noqa: ARG002 - the portfolio saw it
        """Return what the portfolio answered for this instrument when it was last asked."""
        return self.answer


def portfolio_of(strategies: Iterable[Strategy]) -> PortfolioStrategy | None:
    """Return the portfolio strategy that *strategies* are members of; None where they are not."""
    for strategy in strategies:
        if isinstance(strategy, PortfolioMember):
            return strategy.portfolio
    return None
