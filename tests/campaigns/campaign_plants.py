"""Faults that are planted in the product: the world must find each.

    python tests/campaigns/campaign_plants.py [--seed N] [--count M] [--bars B] [--only NAME]

It prints of each plant the law that found it and after how many histories, or that none did.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import itertools
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import structlog

TESTS: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "campaigns")]

from world.history import history, prepare  # noqa: E402 - after their folder
from world.processes import in_child  # noqa: E402 - likewise
from world.spec import BETWEEN, BURST, HOST_FAULTS, RATED, WORLD_FAULTS, drawn, having, without  # noqa: E402

from tracepaper.daemon.broker import matching as matching_module  # noqa: E402
from tracepaper.daemon.broker.broker import Broker  # noqa: E402
from tracepaper.daemon.broker.execution import Executor  # noqa: E402
from tracepaper.daemon.broker.line import Line  # noqa: E402
from tracepaper.daemon.broker.matching import Market  # noqa: E402
from tracepaper.daemon.broker.orders import touched  # noqa: E402
from tracepaper.daemon.broker.settlements import Note, Settlements  # noqa: E402
from tracepaper.daemon.bybit import client as client_module  # noqa: E402
from tracepaper.daemon.bybit import websocket as websocket_module  # noqa: E402
from tracepaper.daemon.bybit.websocket import PublicStream  # noqa: E402
from tracepaper.daemon.engine.engine import Engine  # noqa: E402
from tracepaper.daemon.feed.client import EventQueue  # noqa: E402
from tracepaper.daemon.feed.funding import FundingSchedule  # noqa: E402
from tracepaper.daemon.http.monitor import Monitor  # noqa: E402
from tracepaper.daemon.session import account_file as account_file_module  # noqa: E402
from tracepaper.daemon.session import daemon as daemon_module  # noqa: E402
from tracepaper.daemon.session import parity as parity_module  # noqa: E402
from tracepaper.daemon.session import resume as resume_module  # noqa: E402
from tracepaper.daemon.session import rotation as rotation_module  # noqa: E402
from tracepaper.daemon.session import run_row as run_row_module  # noqa: E402
from tracepaper.daemon.session import supervisor as supervisor_module  # noqa: E402
from tracepaper.daemon.session.carried_account import CarriedAccount  # noqa: E402
from tracepaper.daemon.session.daemon import Daemon  # noqa: E402
from tracepaper.daemon.session.messenger import Messenger  # noqa: E402
from tracepaper.daemon.session.supervisor import Supervisor  # noqa: E402
from tracepaper.storage.audit import SqlAuditLog  # noqa: E402
from tracepaper.storage.database import writer as writer_module  # noqa: E402
from tracepaper.strategies.api.strategy import SmaCross  # noqa: E402
from tracepaper.strategies.gates.gate import GATES  # noqa: E402
from tracepaper.strategies.types.decisions import Fill, Order, RunRow, Step  # noqa: E402
from tracepaper.strategies.types.market import Bar, Command, CommandKind, Funding, Quote, Side  # noqa: E402

CENT: Final = 1_000_000
"""Units of money in a hundredth."""


def _replace(owner: type, name: str, replacement: Callable[..., Any]) -> None:
    setattr(owner, name, replacement)


def acknowledged_before_the_commit() -> None:
    """Count steps as stored before they are."""
    write = SqlAuditLog._write  # noqa: SLF001 - what is broken is private

    def early(self: SqlAuditLog, commits: Sequence[Any]) -> None:
        self._writer.settle(self._run_id, commits[-1].last + 1)
        write(self, commits)

    _replace(SqlAuditLog, "_write", early)


def answered_before_the_commit() -> None:
    """Let steps wait that a command's answer depends on."""
    may_wait = SqlAuditLog._may_wait  # noqa: SLF001 - likewise

    def later(self: SqlAuditLog, step: Step) -> bool:
        return may_wait(self, step) or self._due % 4 != 0

    _replace(SqlAuditLog, "_may_wait", later)


def a_rounded_fee() -> None:
    """Round each fee down to a cent."""
    post = Line.post

    def rounded(self: Line, fill: Fill) -> None:
        cheaper = msgspec.structs.replace(fill, fee=fill.fee // CENT * CENT)
        post(self, cheaper)

    _replace(Line, "post", rounded)


def a_task_left_behind() -> None:
    """Begin a task with each stream that nobody ends."""
    run = PublicStream.run

    async def forgetful(self: PublicStream) -> None:
        asyncio.get_running_loop().create_task(asyncio.sleep(1e9))
        await run(self)

    _replace(PublicStream, "run", forgetful)


def an_error_nobody_handles() -> None:
    """Let a callback of the loop fail."""
    run = PublicStream.run

    async def failing(self: PublicStream) -> None:
        asyncio.get_running_loop().call_later(3, lambda: 1 / 0)
        await run(self)

    _replace(PublicStream, "run", failing)


def a_stop_that_takes_half_a_minute() -> None:
    """Wait at the end of each service."""
    serve = Daemon._serve  # noqa: SLF001 - likewise

    async def slow(self: Daemon, audit: SqlAuditLog) -> None:
        try:
            await serve(self, audit)
        finally:
            await asyncio.sleep(30)

    _replace(Daemon, "_serve", slow)


def a_start_that_hears_no_signal() -> None:
    """Lose a signal that comes before the daemon is ready."""
    stop = Supervisor.stop

    def stop_if_ready(self: Supervisor) -> None:
        if self._is_ready:
            stop(self)

    _replace(Supervisor, "stop", stop_if_ready)


def a_signal_that_nobody_handles() -> None:
    """Let SIGTERM end the process."""
    setattr(supervisor_module, "signals_call", lambda _act: nullcontext())  # noqa: B010 - a module's function


def a_start_that_waits_too_long() -> None:
    """Wait a quarter of an hour before each service."""
    serve = Daemon._serve  # noqa: SLF001 - likewise

    async def late(self: Daemon, audit: SqlAuditLog) -> None:
        await asyncio.sleep(1_000)
        await serve(self, audit)

    _replace(Daemon, "_serve", late)


def a_real_thread() -> None:
    """Start a thread, which no seed determines."""
    run = PublicStream.run

    async def threaded(self: PublicStream) -> None:
        threading.Thread(target=print, name="real").start()
        await run(self)

    _replace(PublicStream, "run", threaded)


def a_real_process() -> None:
    """Start a process, which no seed determines."""
    run = PublicStream.run

    async def with_process(self: PublicStream) -> None:
        subprocess.Popen(["true"])  # noqa: ASYNC220 - what must be refused
        await run(self)

    _replace(PublicStream, "run", with_process)


def a_real_socket() -> None:
    """Connect to another machine, which no seed determines."""
    run = PublicStream.run

    async def connected(self: PublicStream) -> None:
        with socket.socket() as connection:
            connection.connect(("127.0.0.1", 1))
        await run(self)

    _replace(PublicStream, "run", connected)


def a_full_queue_that_raises() -> None:
    """Raise where the queue of the feed has no room."""

    def raising(self: EventQueue[Any], item: object, *, share: float = 1.0) -> bool:
        if self.qsize() >= self.limit * share:
            raise asyncio.QueueFull
        self.put_nowait(item)
        return True

    _replace(EventQueue, "try_put", raising)


def a_hang_that_is_an_error() -> None:
    """Fail after a step that took seconds."""
    observe, last_s = Monitor.observe, [0.0]

    def strict(self: Monitor, step: Step) -> None:
        now_s = asyncio.get_running_loop().time()
        if isinstance(step.event, Bar) and 4 < now_s - last_s[0] < 20:
            raise AssertionError("the loop hung")
        last_s[0] = now_s
        observe(self, step)

    _replace(Monitor, "observe", strict)


def a_file_at_each_step() -> None:
    """Open a file at each step, and expect that one can be."""
    observe = Monitor.observe

    def opening(self: Monitor, step: Step) -> None:
        Path(__file__).read_bytes()
        observe(self, step)

    _replace(Monitor, "observe", opening)


def a_descriptor_that_stays_open() -> None:
    """Open again and again what is open, and close nothing."""
    observe = Monitor.observe

    def opening(self: Monitor, step: Step) -> None:
        os.dup(0)
        observe(self, step)

    _replace(Monitor, "observe", opening)


def a_lock_that_locks_nothing() -> None:
    """Let every instance have the lock."""
    setattr(fcntl, "flock", lambda *_: None)  # noqa: B010 - a module's function


def another_version_goes_on() -> None:
    """Resume a run whatever made it."""
    continues = run_row_module.continues

    def lenient(run: RunRow, *arguments: Any, **named: Any) -> bool:
        own = msgspec.structs.replace(run, code_version=run_row_module.code_version())
        return continues(own, *arguments, **named)

    setattr(resume_module, "continues", lenient)  # noqa: B010 - likewise


def any_schema_is_read() -> None:
    """Open a record of a later version."""
    setattr(writer_module, "check_schema", lambda *_: None)  # noqa: B010 - likewise


def an_answer_without_end() -> None:
    """Read an answer to its end."""
    setattr(client_module, "BODY_BYTES_MAX", 1 << 50)  # noqa: B010 - it is final


def a_frame_without_end() -> None:
    """Read a frame to its end."""
    setattr(websocket_module, "FRAME_BYTES_MAX", 1 << 50)  # noqa: B010 - likewise


def no_proxy() -> None:
    """Connect past the proxy."""
    for module in (client_module, websocket_module):
        setattr(module, "is_loopback", lambda _url: True)  # noqa: B010 - a module's function


def filters_of_the_first_day() -> None:
    """Order by the filters that the run began with."""
    _replace(Engine, "_change_instrument", lambda _self, _instrument: None)


def a_symbol_that_is_gone_ends_it() -> None:
    """Know no symbol that the exchange lists no more."""
    setattr(daemon_module, "last_instruments", lambda *_: {})  # noqa: B010 - likewise


def a_replay_that_must_succeed() -> None:
    """Expect every process to do its work."""

    def unchecked(*_arguments: object) -> None:
        raise RuntimeError("a replay failed")

    setattr(parity_module, "unchecked", unchecked)  # noqa: B010 - likewise


def a_decision_that_no_record_explains() -> None:
    """Let a cross depend on the process that decides."""
    observe, calls = SmaCross.observe, itertools.count()

    def moody(self: SmaCross, *arguments: Any, **named: Any) -> Any:
        self._fast = 2 + next(calls) % 3
        return observe(self, *arguments, **named)

    _replace(SmaCross, "observe", moody)


def a_notice_told_twice() -> None:
    """Keep the notices that were sent."""
    send = Messenger._send_waiting  # noqa: SLF001 - what is broken is private

    async def again(self: Messenger) -> None:
        waiting = list(self._queue)
        await send(self)
        self._queue.extend(waiting[:1])

    _replace(Messenger, "_send_waiting", again)


def a_new_run_that_begins_now() -> None:
    """Let a run that takes over an account pass over the bars in between."""

    def from_now(self: CarriedAccount, interval_ms: int, latest_ms: int) -> dict[str, int]:
        del interval_ms
        return dict.fromkeys(self.begun_ms, latest_ms)

    _replace(CarriedAccount, "first_ms", from_now)


def a_halt_that_is_forgotten() -> None:
    """Trade on after HALT."""
    step = Engine._step_of_command  # noqa: SLF001 - what is broken is private

    def forgetful(self: Engine, command: Command) -> Step:
        done = step(self, command)
        self.halted = command.kind is CommandKind.FLATTEN
        return done

    _replace(Engine, "_step_of_command", forgetful)


def a_flatten_that_closes_nothing() -> None:
    """Halt, and keep every position."""
    _replace(Broker, "flatten", lambda *_: None)


def buys_at_the_bid() -> None:
    """Buy where others buy."""
    at_quote = Executor.at_quote

    def cheap(self: Executor, order: Order, quote: Quote, *sizes: Any) -> Fill | None:
        return at_quote(self, order, msgspec.structs.replace(quote, ask=quote.bid), *sizes)

    _replace(Executor, "at_quote", cheap)


def fills_beyond_the_size_shown() -> None:
    """Fill whole orders."""
    at_quote = Executor.at_quote

    def whole(
        self: Executor, order: Order, quote: Quote, available: int, *wanted: Any
    ) -> Fill | None:
        return at_quote(self, order, quote, max(available, order.quantity), *wanted)

    _replace(Executor, "at_quote", whole)


def a_stop_that_is_late() -> None:
    """Trigger a stop thirty of the quote currency beyond its price."""

    def late(order: Order, far: int) -> bool:
        return touched(order, far - 3_000 if order.side is Side.BUY else far + 3_000)

    setattr(matching_module, "touched", late)  # noqa: B010 - a module's function


def a_stop_that_is_ignored_at_first() -> None:
    """Trigger a stop a quarter of an hour after it was met."""
    meet, first = Market._meet_quote, dict[tuple[str, int], int]()  # noqa: SLF001 - likewise

    def patient(self: Market, order: Order, quote: Quote, left: dict[Side, int]) -> None:
        far = quote.ask if order.side is Side.BUY else quote.bid
        if order.trigger is None or order.triggered or not touched(order, far):
            return meet(self, order, quote, left)
        met_ms = first.setdefault((order.order_id, order.created_ms), quote.market_ms)
        return meet(self, order, quote, left) if quote.market_ms > met_ms + 900_000 else None

    _replace(Market, "_meet_quote", patient)


def limits_that_are_never_filled() -> None:
    """Let no price go through a limit."""
    setattr(matching_module, "is_through", lambda *_: False)  # noqa: B010 - a module's function


def no_liquidation() -> None:
    """Keep a position whose margin is lost."""
    _replace(Broker, "_liquidate", lambda *_: None)


def a_late_bar_that_decides() -> None:
    """Trade on every bar, however late it and the quotes are."""
    for name in ("late", "stale"):
        msgspec.structs.force_setattr(GATES[name], "measure", lambda _inputs: 0.0)


def an_order_that_meets_the_quote_before() -> None:
    """Fill by the quote before the newest."""
    on_quote = Broker.on_quote
    newest: dict[str, Quote] = {}

    def behind(self: Broker, quote: Quote) -> None:
        before = newest.get(quote.instrument, quote)
        newest[quote.instrument] = quote
        at = {"market_ms": quote.market_ms, "seen_ms": quote.seen_ms}
        on_quote(self, msgspec.structs.replace(before, **at))

    _replace(Broker, "on_quote", behind)


def a_settlement_of_what_is_held_later() -> None:
    """Book a late rate on what is held when it comes."""
    arrive = Settlements.arrive

    def later(self: Settlements, funding: Funding, closed_ms: int, newest: Note) -> Note | None:
        noted = arrive(self, funding, closed_ms, newest)
        return None if noted is None else newest

    _replace(Settlements, "arrive", later)


def a_rate_that_a_start_forgets() -> None:
    """Let each start take one more settlement for delivered."""
    make = FundingSchedule.__init__

    def forgetful(self: FundingSchedule, *, interval_minutes: int, settled_ms: int) -> None:
        length_ms = interval_minutes * 60_000
        make(self, interval_minutes=interval_minutes, settled_ms=settled_ms + length_ms)

    _replace(FundingSchedule, "__init__", forgetful)


def an_account_that_a_rotation_loses() -> None:
    """Begin each file with a new account."""
    _replace(CarriedAccount, "waiting", lambda *_: None)


def an_account_that_a_rotation_enriches() -> None:
    """Begin each file with 5,000 more."""
    end = account_file_module.account_at_end

    def richer(*given: Any, **named: Any) -> CarriedAccount:
        account = end(*given, **named)
        own = account.state["account"]
        richer = {**own, "cash": own["cash"] + 500_000 * CENT}
        return msgspec.structs.replace(account, state={**account.state, "account": richer})

    setattr(rotation_module, "account_at_end", richer)  # noqa: B010 - a module's function


def a_moment_without_a_file() -> None:
    """Rename the older file, and then the new one."""
    link = os.link

    def moved(source: Path, target: Path) -> None:
        (os.rename if source.name == "run.db" else link)(source, target)

    setattr(os, "link", moved)  # noqa: B010 - likewise


class Plant(NamedTuple):
    """A fault, the law that must find it, and what the histories have beside kills and bursts.

    *first* is the history, counted from 0, that finds it first, and *kind* its configuration.
    """

    fault: Callable[[], None]
    law: str
    has: tuple[str, ...] = ()
    first: int = 0
    kind: str = ""


PLANTS: Final = (
    Plant(acknowledged_before_the_commit, "acknowledged", first=1),
    Plant(answered_before_the_commit, "commands", first=17),
    Plant(a_rounded_fee, "ledger", first=1),
    Plant(a_task_left_behind, "left"),
    Plant(an_error_nobody_handles, "unhandled"),
    Plant(a_stop_that_takes_half_a_minute, "stop", first=6),
    Plant(a_start_that_hears_no_signal, "stop", first=4),
    Plant(a_signal_that_nobody_handles, "end", first=4),
    Plant(a_start_that_waits_too_long, "recovery", first=1),
    Plant(a_real_thread, "end"),
    Plant(a_real_process, "end"),
    Plant(a_real_socket, "end"),
    Plant(a_full_queue_that_raises, "end"),
    Plant(a_hang_that_is_an_error, "end", ("hanging",), first=4),
    Plant(a_file_at_each_step, "end", ("leaking",), first=2),
    Plant(a_descriptor_that_stays_open, "left"),
    Plant(a_lock_that_locks_nothing, "second", ("second",)),
    Plant(another_version_goes_on, "versions", ("versions",)),
    Plant(any_schema_is_read, "newer", ("newer",)),
    Plant(an_answer_without_end, "bomb", ("bomb",), first=5),
    Plant(a_frame_without_end, "bomb", ("bomb",)),
    Plant(no_proxy, "proxy", ("proxy",)),
    Plant(filters_of_the_first_day, "filters", ("filters",), first=5),
    Plant(a_symbol_that_is_gone_ends_it, "recovery", ("gone",), first=1),
    Plant(a_replay_that_must_succeed, "end", ("parity",), first=12),
    Plant(a_decision_that_no_record_explains, "parity", ("parity",), first=2),
    Plant(a_notice_told_twice, "notices", ("notices",), first=7),
    Plant(a_new_run_that_begins_now, "decisions", ("edit",)),
    Plant(a_halt_that_is_forgotten, "halt", kind="plain"),
    Plant(a_flatten_that_closes_nothing, "halt", kind="plain"),
    Plant(buys_at_the_bid, "fills", kind="plain"),
    Plant(fills_beyond_the_size_shown, "fills", kind="plain"),
    Plant(a_stop_that_is_late, "stops", kind="exits"),
    Plant(a_stop_that_is_ignored_at_first, "stops", kind="exits"),
    Plant(limits_that_are_never_filled, "limits", kind="limits"),
    Plant(no_liquidation, "liquidations", kind="margin"),
    Plant(a_late_bar_that_decides, "late", ("stopped", "suspended"), kind="plain"),
    Plant(an_order_that_meets_the_quote_before, "fills", kind="plain"),
    Plant(a_settlement_of_what_is_held_later, "settlements", kind="plain"),
    Plant(a_rate_that_a_start_forgets, "settlements", kind="plain"),
    Plant(an_account_that_a_rotation_loses, "account", ("rotate",)),
    Plant(an_account_that_a_rotation_enriches, "audit verify", ("rotate",)),
    Plant(a_moment_without_a_file, "between", ("rotate",), first=37),
)


OF_TRADING: Final = ("fills", "stops", "limits", "liquidations", "late", "settlements")
"""Laws that need positions, and prices that move from quote to quote."""


FAULTS: Final = (*RATED, *WORLD_FAULTS)


def find(plant: Plant, base: Path, seeds: Sequence[int], bars: int) -> str:
    """Return the law that *plant* broke in the first history that showed it; else nothing."""
    plant.fault()
    kind = dict.fromkeys(("parity", "hanging", "leaking"), "plain")
    kind |= {"filters": "limits", "gone": "two"}
    chosen = plant.kind or next((kind[name] for name in plant.has if name in kind), "")
    for number, seed in enumerate((plant.first + seed for seed in seeds), start=1):
        # Many commands, kills and bursts: a fault shows where one meets the other.
        days_have_to_end = {"parity", "filters"}.intersection(plant.has)
        minutes = 240 if days_have_to_end else 60 if plant.law in OF_TRADING else 0
        spec = drawn(seed, bars=bars, kind=chosen, minutes=minutes)
        rates = spec.rates | {BURST: 3.0} | {name: 3.0 for name in plant.has if name in FAULTS}
        spec = msgspec.structs.replace(
            having(without(spec, ("listed", "gone")), plant.has),
            host=HOST_FAULTS,
            gone_bar=bars // 4 if "gone" in plant.has else 0,
            # What is halted orders nothing.
            command_bars=15.0 if plant.law in {"filters", *OF_TRADING} else 0.5,
            rates=rates,
            between=tuple(name for name in plant.has if name in BETWEEN),
        )
        outcome = history(spec, base / plant.fault.__name__, until=plant.law)
        if plant.law in {each.law for each in outcome.violations}:
            return f"{plant.law} after {number}"
    return ""


def main() -> int:
    """Plant each fault; return 1 where one was not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1_000)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--bars", type=int, default=30)
    parser.add_argument("--only", default="", help="a part of a fault's name")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    base = Path(tempfile.mkdtemp(prefix="planted-"))
    prepare(base / "prepared")
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    missed = 0
    for plant in PLANTS:
        if arguments.only in plant.fault.__name__:
            law = in_child(partial(find, plant, base, seeds, arguments.bars))
            missed += not law
            print(f"{plant.fault.__name__}: {law or 'not found'}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
