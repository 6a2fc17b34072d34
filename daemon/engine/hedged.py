"""``HedgedEngine``: one strategy on an account in hedge mode, with two sides of each symbol.

Each signal is judged and sized for the side that it names, and each side is asked for its own.

The rules are docs/money.md, M93 to M96.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.broker.account import OPENS, Intent, intents, side_of
from tracepaper.daemon.broker.book import Holdings
from tracepaper.daemon.broker.broker import Filled
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.instrument_state import InstrumentState
from tracepaper.daemon.engine.state import INTEGRITY, Decided, EngineSettings
from tracepaper.strategies.api.context import BarContext, Cancel, OrderRequest, Orders, Signal
from tracepaper.strategies.api.sizing import Sizer
from tracepaper.strategies.api.strategy import Strategy, portfolio_of
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed
from tracepaper.strategies.gates.evaluator import GateEvaluator
from tracepaper.strategies.types.decisions import (
    Action,
    Forecast,
    PositionSide,
    Step,
)
from tracepaper.strategies.types.market import Bar, Instrument

HORIZON: Final = "horizon"
NO_SIDE: Final = (
    "The strategy ordered without a position_side, which the account needs in hedge mode; give "
    "buy() and sell() position_side=PositionSide.LONG or SHORT."
)


class HedgedState(InstrumentState):
    """An instrument whose strategy is answered for two sides."""

    __slots__ = ()

    def __init__(self, *given: object, **named: object) -> None:
        super().__init__(*given, **named)  # type: ignore[arg-type]
        self._repeats = False  # a decision follows from both sides' targets

    def _signal(self, context: BarContext) -> Signal | Orders:
        """Return the strategy's answer; orders that close a side may only reduce it."""
        answer = super()._signal(context)
        if isinstance(answer, Signal):
            return answer
        requests: list[OrderRequest | Cancel] = []
        for request in answer.requests:
            if not isinstance(request, OrderRequest):
                requests.append(request)
                continue
            if (side := request.position_side) is None:
                raise StrategyFailed(NO_SIDE)
            closes = request.side is not OPENS[side]
            requests.append(replace(request, reduce_only=True) if closes else request)
        return replace(answer, requests=tuple(requests))

    def _target(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        account: Holdings,
        *,
        is_full: bool = False,
    ) -> int:
        """Return the quantity that *signal* asks for of its side; else the sum of both targets."""
        side = side_of(signal.action)
        if account.sides:
            if signal.action is Action.FLAT:
                return self._left(signal, bar, account)
            account = account if side is None else account.sides[side]
        return super()._target(signal, bar, forecast, account, is_full=is_full)

    @staticmethod
    def _left(signal: Signal, bar: Bar, account: Holdings) -> int:
        """Return the targets that a FLAT signal leaves standing."""
        return sum(
            one.target(bar.instrument)
            for side, one in account.sides.items()
            if signal.position_side not in {None, side}
        )

    def _see_target(
        self, bar: Bar, target: int, account: Holdings, *, reduces: bool | None = None
    ) -> None:
        """Measure limits: of a symbol both sides count, without signs."""
        signal, key = self.signal, bar.instrument
        size = abs(target)
        if isinstance(signal, Signal):
            named = side_of(signal.action)
            size = 0
            shrinks = []
            for side, one in account.sides.items():
                wanted = one.target(key)
                if side is named:
                    wanted = target
                elif signal.action is Action.FLAT and signal.position_side in {None, side}:
                    wanted = 0
                size += abs(wanted)
                if named in {None, side}:
                    shrinks.append(abs(wanted) <= abs(one.held(key)))
            reduces = all(shrinks)
        notional = self.value_of(bar.close, size)
        self.gates.see_target(
            bar, target, account, self.history, self.quote, notional, reduces=reduces
        )

    def follow(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        account: Holdings,
        refused: str | None,
        *,
        is_full: bool = False,
    ) -> Intent:
        """Return the intent of each side: the one that *signal* names, and the other one.

        What has outlived its horizon is closed wherever the inputs could be believed.
        """
        named = side_of(signal.action)
        judged = account if named is None else account.sides[named]
        intent = super().follow(signal, bar, forecast, judged, refused, is_full=is_full)
        action, key = intent.action, bar.instrument
        named = side_of(action)
        sides: dict[PositionSide, Intent | None] = {}
        left = 0
        outlived = False
        for side, one in account.sides.items():
            standing = one.target(key)
            asked: Intent | None
            if side is named:
                asked = intent
            elif action is Action.FLAT and (
                signal.action is not Action.FLAT or signal.position_side in {None, side}
            ):
                asked = Intent(Action.FLAT, 0, intent.reason)
            elif refused not in INTEGRITY and super()._expired(bar, one):
                asked, outlived = Intent(Action.FLAT, 0, HORIZON), True
            else:
                asked = None
                if refused is None:  # what could not be ordered is asked for again
                    asked = Intent(Action.HOLD, standing, intent.reason)
            sides[side] = asked
            left += standing if asked is None else asked.target
        if action is Action.HOLD and outlived:
            intent = Intent(Action.FLAT, left, HORIZON)
        elif named is None:
            intent = intent._replace(target=left)
        return intents(intent, sides)

    def _expired(self, bar: Bar, account: Holdings) -> bool:  # noqa: ARG002
        """Return False: :meth:`follow` asks of each side."""
        return False


class HedgedEngine(Engine):
    """The engine of a run in hedge mode; it has no shadow accounts."""

    state_type = HedgedState
    is_hedged = True

    def __init__(
        self,
        instruments: Sequence[Instrument],
        strategies: Mapping[str, Strategy],
        sizers: Mapping[str, Sizer],
        gates: Mapping[str, GateEvaluator],
        settings: EngineSettings,
    ) -> None:
        if portfolio_of(strategies.values()) is not None:
            raise ConfigInvalid(
                "A strategy that decides for all symbols of a close trades no account in hedge "
                'mode; set account.position_mode to "one_way".'
            )
        for strategy in strategies.values():
            strategy.twins = ()
        super().__init__(instruments, strategies, sizers, gates, settings)

    def _conclude(
        self, bar: Bar, filled: Filled, decided: Decided, confirmed: Sequence[str], *, saves: bool
    ) -> Step:
        """Return the step of *bar*, with the sides whose positions it confirmed."""
        confirmed = [
            side.value
            for side, account in self.broker.own.sides.items()
            if account.confirmed_ms(bar.instrument) == bar.open_time_ms
        ]
        return super()._conclude(bar, filled, decided, confirmed, saves=saves)
