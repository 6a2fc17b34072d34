"""``CarriedAccount``: what one run hands to the next.

It stands in the row of the run that takes it over, so the first link of its chain covers it. Its
fields have names, because the order of the fields of a stored state is part of a schema.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.account import AccountState
from tracepaper.daemon.engine.state import EngineState, decode_state, resting_orders
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.database.trade_rows import open_trades
from tracepaper.storage.record.trades import OpenTrade, Totals, inherited
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Confirmation, RunRow
from tracepaper.strategies.types.market import Instrument, RunKind
from tracepaper.strategies.units import MONEY_DECIMALS, interval_start, scaled

FORMAT: Final = 1


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """The end of the run whose account it is."""

    run_id: str
    last_step: int
    digest: str  # of its last commit
    market_ms: int  # of its last step
    code_version: str


class CarriedAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The account at the end of a run. Money and quantities are the record's integers."""

    format: int = FORMAT
    origin: Origin
    interval_ms: int
    rest_url: str  # of the exchange that served the market
    market: dict[str, Any]  # ``[market]`` as configured, with the symbols of the run
    config_sha256: str
    strategy: str
    strategy_sha256: str
    model_sha256: str
    instruments: tuple[Instrument, ...]
    begun_ms: dict[str, int]  # by instrument: the open time of its first decided bar
    last_open_ms: dict[str, int]  # by instrument: the open time of its newest bar
    state: dict[str, Any]  # an ``EngineState`` by name, after the last verdicts and confirmations
    totals: dict[str, Totals]  # by shadow account; "" is the run's own
    funding_paid: dict[str, dict[str, int]]  # the same by instrument
    open_trades: tuple[OpenTrade, ...]

    @classmethod
    def of(cls, reader: Reader, run: RunRow) -> Self | None:
        """Return the account at the end of *run*; None if it stored no state."""
        stored, found = reader.stored_run(run.run_id), reader.state_at(run.run_id)
        if found is None:
            return None
        state = decode_state(found[0]).after(reader.verdicts_since(run.run_id, found[1]))
        state = _confirmed(state, reader.confirmations(run.run_id))
        last = reader.counted(run.run_id)[1] - 1
        config = msgspec.json.decode(run.config)
        return cls(
            origin=Origin(
                run.run_id,
                last,
                stored.head_digest.hex(),
                reader.step(run.run_id, last).event.market_ms,
                run.code_version,
            ),
            interval_ms=run.interval_ms,
            rest_url=config["exchange"]["rest_url"],
            market=config["market"],
            config_sha256=run.config_sha256,
            strategy=run.strategy,
            strategy_sha256=run.strategy_sha256,
            model_sha256=run.model_sha256,
            instruments=run.instruments,
            begun_ms={item.id: run.period_start_ms for item in run.instruments} | state.first_ms,
            last_open_ms=reader.last_open_ms(run.run_id),
            state=_named(state),
            totals=_totals(reader, run, state.shadows),
            funding_paid={
                name: {key: holding.funding_paid for key, holding in account.holdings.items()}
                for name, account in {"": state.account, **state.shadows}.items()
            },
            open_trades=open_trades(reader.connection, stored.run_key, run),
        )

    @classmethod
    def waiting(cls, reader: Reader, kind: RunKind) -> Self | None:
        """Return the account with which a file begins that has no run of *kind* yet, if any."""
        row = reader.connection.execute("SELECT account FROM begins").fetchone()
        return None if row is None or kind is not RunKind.LIVE else cls.read(row[0])

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the account in *text*, JSON; raise ``DataInvalid`` if it is none."""
        try:
            account = msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise DataInvalid(
                f"The account that a run took over cannot be read: {error}."
            ) from error
        if account.format != FORMAT or account.json() != text:
            raise DataInvalid("The account that a run took over is written in another form.")
        return account

    def sums(self) -> Iterator[tuple[str, object, object]]:
        """Yield the name of each sum, what it is, and what follows from its parts."""
        state = _engine_state(self.state)
        items = {item.id: item for item in self.instruments}
        for name, account in {"": state.account, **state.shadows}.items():
            held = account.holdings
            yield "the list of instruments", sorted(held), sorted(items)
            paid = {key: holding.funding_paid for key, holding in held.items()}
            yield "funding_paid", self.funding_paid.get(name), paid
            if (totals := self.totals.get(name)) is not None:
                for field in ("realized_pnl", "fees_paid", "funding_paid"):
                    parts = [getattr(holding, field) for holding in held.values()]
                    yield field, getattr(totals, field), sum(parts)
                entries = [held[key].entry_notional for key in held if items[key].category.is_cash]
                worth = account.cash + sum(entries) + totals.unrealized_pnl
                yield "equity", totals.equity, worth
            for key, holding in held.items():
                trades = [
                    each.held
                    for each in self.open_trades
                    if (each.shadow or "", each.instrument) == (name, key)
                ]
                is_dust = abs(holding.quantity - sum(trades)) < items[key].quantity_step
                due = holding.quantity if is_dust else sum(trades)
                yield f"the quantity in {key}", holding.quantity, due
        for trade in self.open_trades:
            if not items[trade.instrument].category.is_cash:  # a fee in coin is no exit
                left = trade.entries[0] - trade.exits[0]
                yield f"the open trade in {trade.instrument}", abs(trade.held), left
        for order in resting_orders(state):
            most = min(max(order.filled, 0), order.quantity - 1)
            yield f"what is filled of order {order.order_id}", order.filled, most

    def json(self) -> str:
        """Return it as JSON, equal for equal accounts."""
        return msgspec.json.encode(self, order="sorted").decode()

    def is_of(self, instruments: Iterable[Instrument]) -> bool:
        """Return whether it has positions in just these *instruments*."""
        return {item.id for item in instruments} == {item.id for item in self.instruments}

    @property
    def is_open(self) -> bool:
        """Whether it holds a position, of more than dust, or a resting order."""
        state = _engine_state(self.state)
        held = state.account.holdings
        return bool(resting_orders(state)) or any(
            abs(held[item.id].quantity) >= item.quantity_step for item in self.instruments
        )

    def first_ms(self, interval_ms: int, latest_ms: int) -> dict[str, int]:
        """Return the open time of the first bar of *interval_ms* that was left undecided.

        It is given by instrument. A bar of another interval opens when the last one closed, or
        later. Bars that are newer than the exchange's time are followed by the bar that is open
        then, at *latest_ms*.
        """
        first_ms = {}
        for key, begun_ms in self.begun_ms.items():
            closed_ms = self.last_open_ms.get(key, begun_ms - self.interval_ms) + self.interval_ms
            opened_ms = interval_start(max(begun_ms, closed_ms) + interval_ms - 1, interval_ms)
            first_ms[key] = min(opened_ms, latest_ms)
        return first_ms

    def first_state(self, run: RunRow) -> EngineState:
        """Return the state with which *run* begins. The declared state of other classes is dropped.

        Orders get ids of their own. Totals of shadow accounts go on where no setting changed. If a
        first bar was limited by the exchange's time, the run's period begins there.
        """
        state = _engine_state(self.state)
        is_strategy = (run.strategy, run.strategy_sha256) == (self.strategy, self.strategy_sha256)
        is_same = is_strategy and (run.config_sha256, run.model_sha256) == (
            self.config_sha256,
            self.model_sha256,
        )
        return replace(
            state,
            account=state.account.taken_over(),
            shadows={name: account.taken_over() for name, account in state.shadows.items()},
            settled=self.begun_ms | state.settled,
            first_ms=self.first_ms(run.interval_ms, run.period_start_ms),
            declared=state.declared if is_strategy else {},
            bases=state.bases if is_same else {},
        )


def _totals(reader: Reader, run: RunRow, shadows: Iterable[str]) -> dict[str, Totals]:
    """Return the newest sums of each account of *run*, "" for its own, and of its *shadows*.

    Those of a shadow account that decided nothing in *run* are the ones that it took over.
    """
    views, before = RunViews(reader.connection, run.run_id), inherited(run)
    rows = [*views.rows("v_equity", newest=1)]
    for name in sorted(shadows):
        rows += views.rows("v_shadow_equity", newest=1, shadow=name)
    found = {
        row.get("shadow", ""): Totals(
            *(scaled(Decimal(row[f"{name}_text"]), MONEY_DECIMALS, name=name) for name in _TOTALS)
        )
        for row in rows
    }
    return ({} if before is None else before.totals) | found


_TOTALS: Final = Totals.__struct_fields__


def _confirmed(state: EngineState, confirmations: list[Confirmation]) -> EngineState:
    """Return *state* with later *confirmations*, oldest first."""
    account, shadows = state.account, dict(state.shadows)
    for each in confirmations:
        if each.shadow is None:
            account = _with_confirmation(account, each)
        elif each.shadow in shadows:
            shadows[each.shadow] = _with_confirmation(shadows[each.shadow], each)
    return replace(state, account=account, shadows=shadows)


def _with_confirmation(account: AccountState, confirmation: Confirmation) -> AccountState:
    line = account.lines[confirmation.instrument]
    orders = replace(line.orders, confirmed_ms=confirmation.open_time_ms)
    lines = {**account.lines, confirmation.instrument: replace(line, orders=orders)}
    return replace(account, lines=lines)


# ---------------------------------------------------------------- fields by name


def _named(value: Any) -> Any:  # noqa: ANN401 - any field's value
    """Return *value* with each struct as a dictionary of its fields."""
    match value:
        case Struct():
            return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
        case dict():
            return {key: _named(each) for key, each in value.items()}
        case tuple() | list():
            return [_named(each) for each in value]
        case Enum():
            return value.value
        case bytes():  # a declared state, in the form that JSON has
            return b64encode(value).decode()
    return value


def _engine_state(named: Mapping[str, Any]) -> EngineState:
    """Return the state of *named*; raise ``DataInvalid`` if a field is missing or unknown."""
    try:
        return msgspec.convert(_in_order(named, EngineState, "state"), EngineState)
    except msgspec.ValidationError as error:
        raise DataInvalid(f"The state of an account cannot be read: {error}.") from error


def _in_order(value: Any, of: Any, where: str) -> Any:  # noqa: ANN401 - any field's value
    """Return *value* with the fields of its structs in the order of the type *of*."""
    origin, arguments = get_origin(of), get_args(of)
    if value is None or (origin is None and not _is_struct(of)):
        return value
    if not isinstance(value, list if origin in (list, tuple) else dict) and origin in _MANY:
        raise DataInvalid(f"{where} of an account holds {value!r}.")
    if _is_struct(of):
        if not isinstance(value, dict):
            raise DataInvalid(f"{where} of an account holds {value!r}.")
        names = of.__struct_fields__
        if odd := sorted({*value} ^ {*names}):
            raise DataInvalid(f"In {where} of an account, {', '.join(odd)} is missing or unknown.")
        hints = get_type_hints(of)
        fields = {name: _in_order(value[name], hints[name], f"{where}.{name}") for name in names}
        return [*fields.values()] if of.__struct_config__.array_like else fields
    if origin is dict and isinstance(value, dict):
        return {key: _in_order(each, arguments[1], f"{where}.{key}") for key, each in value.items()}
    if origin in (list, tuple):
        return [_in_order(each, arguments[0], where) for each in value]
    (member,) = [each for each in arguments if each is not type(None)]
    return _in_order(value, member, where)


_MANY: Final = (list, tuple, dict)


def _is_struct(of: object) -> bool:
    return isinstance(of, type) and issubclass(of, Struct)
