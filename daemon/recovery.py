"""A run goes on: the account from its last step, checked against its ledger, the bars again."""

from __future__ import annotations

from tracepaper.daemon.engine.account import Portfolio
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.state import EngineState, decode_state
from tracepaper.daemon.session.predictor import BarHistory
from tracepaper.storage.audit import Resumed
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types import Run


def restore_engine(
    engine: Engine, reader: Reader, resumed: Resumed, memory: BarHistory | None
) -> None:
    """Bring *engine* to where *resumed* ended, and *memory* to the bars its model needs.

    Raises ``InvariantBroken`` where the stored state is not what the stored fills add up to.
    """
    run = resumed.run
    if resumed.state is not None:
        state = decode_state(resumed.state)
        check_ledger(reader, resumed, state)
        engine.restore(
            state,
            next_sequence=resumed.next_sequence,
            confirmed=reader.confirmations(run.run_id),
        )
    else:
        engine.sequence = resumed.next_sequence
    recall_bars(engine, reader, run, memory)


def recall_bars(engine: Engine, reader: Reader, run: Run, memory: BarHistory | None) -> None:
    """Feed the newest bars of *run* into *engine* and *memory* again; they cause nothing."""
    for item in run.instruments:
        wanted = max(engine.warmup_of(item.id), 1 if memory is None else memory.context)
        for bar in reader.bars(run.run_id, item.id, wanted):
            engine.recall(bar)
            if memory is not None:
                memory.push(bar)


def check_ledger(reader: Reader, resumed: Resumed, state: EngineState) -> None:
    """Add up the run's own fills and compare; the account must equal its ledger.

    Of a run that was pruned, from the account at the cut on.
    """
    run = resumed.run
    start = reader.first_state(run.run_id)
    if start is None:
        return
    opened = decode_state(start[0])
    portfolio = Portfolio(opened.ledger.cash, {item.id: item for item in run.instruments})
    portfolio.restore(opened.ledger.cash, opened.ledger.holdings)
    for fill in reader.fills(run.run_id, after=start[1]):
        portfolio.apply(fill)
    funding = 0
    for key, holding in state.ledger.holdings.items():
        added = portfolio.holdings[key]
        funding += holding.funding_paid - added.funding_paid
        same = (
            added.quantity == holding.quantity
            and added.entry_notional == holding.entry_notional
            and added.realized_pnl == holding.realized_pnl
            and added.fees_paid == holding.fees_paid
        )
        if not same:
            raise InvariantBroken(
                f"the fills of run {run.run_id} add up to {added.quantity} of {key}, but its last "
                f"step holds {holding.quantity}; run `tracepaper audit verify` and restore a backup"
            )
    if portfolio.cash - funding != state.ledger.cash:
        raise InvariantBroken(
            f"the fills of run {run.run_id} leave cash {portfolio.cash - funding}, but its last "
            f"step says {state.ledger.cash}; run `tracepaper audit verify` and restore a backup"
        )
