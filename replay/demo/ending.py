"""The demo's last screen: money, gates, one decision, next commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.replay.checks.parity import check_whole
from tracepaper.replay.demo.race import ShowFiles
from tracepaper.replay.document.terminal import printed
from tracepaper.replay.document.values import Figure, Table, table
from tracepaper.replay.explain.decision import StoredDecision, flips_of, read_stored, verdict_of
from tracepaper.replay.report.benchmarks import (
    ALLOWED,
    RandomTwins,
    Refusal,
    random_twins,
    refusals,
)
from tracepaper.replay.report.figures import ACCOUNTS as ACCOUNT_FIGURES
from tracepaper.replay.report.figures import COSTS, REFUSALS
from tracepaper.replay.report.metrics import is_credible, total_return
from tracepaper.replay.report.record import RunRecord, read_record
from tracepaper.replay.report.report import AccountReport, account_report, held_alike
from tracepaper.replay.report.terminal import decision_to_explain, program_name
from tracepaper.replay.report.trades import ClosedTrade, closed_trades
from tracepaper.storage.chain.verify import ChainReport, verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.gates.gate import GATES as GATES_KNOWN
from tracepaper.strategies.gates.gate import GateKind
from tracepaper.strategies.types.market import ParityCheck, ParityOutcome

GATES_SHOWN: Final = 4
LOOKS_SHOWN: Final = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Ending:
    """Everything that the end of a show says."""

    record: RunRecord
    accounts: tuple[AccountReport, ...]  # the run's own first, then its twins
    closed: tuple[ClosedTrade, ...]  # of the run's own
    chance: RandomTwins | None  # None where the run held nothing
    market: float  # return of buy and hold of both symbols with all the money
    refusals: tuple[Refusal, ...]
    decision: StoredDecision | None
    chain: ChainReport

    @property
    def decisions(self) -> int:
        """How many bars were decided."""
        return self.record.decisions.sequence.size

    @property
    def late(self) -> int:
        """How many of them came too late to be traded."""
        return int((self.record.decisions.refused_by == late.name).sum())


@dataclass(frozen=True)
class Played:
    """What the show of the bundled month saw itself."""

    outcomes: tuple[str, ...]  # of the incidents that happened, a sentence each
    starts: int  # of the daemon
    slowest_s: float  # longest time of this machine from a bar's close until it was stored
    files: ShowFiles


def read(database: Path) -> Ending:
    """Return the end of the newest run of *database*."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        record = read_record(reader, database, run_id)
        chain = verify_chain(reader.connection, run_id)
    ledgers = (record.account, *record.twins)
    closed = {of.name: closed_trades(record, of) for of in ledgers}
    sequence = decision_to_explain(database, run_id)
    *_, (_, _, market, _) = held_alike(record)
    return Ending(
        record=record,
        accounts=tuple(account_report(record, of, closed[of.name]) for of in ledgers),
        closed=tuple(closed[record.account.name]),
        chance=random_twins(record, record.account, record.times_ms[:0]),
        market=total_return(market),
        refusals=tuple(refusals(record)),
        decision=None if sequence is None else read_stored(database, run_id, sequence),
        chain=chain,
    )


def sum_up(database: Path, played: Played | None, *, as_json: bool) -> None:
    """Print the end of the newest run of *database*; *played* of a show of the bundled month."""
    ending = read(database)
    if not as_json:
        show(Terminal(highlight=False), ending, database, played)
        sys.stderr.write("The run is replayed from its record, which takes a while.\n")
    parity = check_whole(database, ending.record.run["run_id"], "parity")
    if as_json:
        print_json({**document(ending, database, played), "parity": parity})
    else:
        Terminal(highlight=False).print(parity_line(parity))


def show(console: Console, ending: Ending, database: Path, played: Played | None) -> None:
    """Print *ending* on one screen."""
    console.print(Rule("What was earned or lost", align="left", style="dim"))
    for sentence in earned(ending):
        console.print(Text(sentence))
    console.print(printed(accounts_table(ending)))
    console.print(Rule("What the gates saved or cost", align="left", style="dim"))
    judged = gates_table(ending)
    console.print(Text(gates_sentence(ending)))
    if judged.rows:
        console.print(printed(judged))
    if ending.decision is not None:
        console.print(Rule("One decision, explained", align="left", style="dim"))
        for sentence in explained(ending.decision):
            console.print(Text(sentence))
    console.print(Rule("Trace it", align="left", style="dim"))
    console.print(Text(traced(ending, played)))
    kept = f"Kept: {database}"
    if played is not None:
        kept += f", its configuration {played.files.config}, the daemon's {played.files.log}"
    console.print(Text(f"{kept}. Next:"))
    for command in commands(ending, database):
        console.print(f"  {command}", soft_wrap=True, markup=False)


def titled(figures: Iterable[Figure[T]], titles: Mapping[str, str]) -> tuple[Figure[T], ...]:
    """Return the figures of the report that *titles* name, under these short titles."""
    by_key = {figure.key: figure for figure in figures}
    return tuple(replace(by_key[key], title=title) for key, title in titles.items())


# ---------------------------------------------------------------- money


def earned(ending: Ending) -> Iterator[str]:
    """Yield what the run's account came to, why, and what that is worth as evidence."""
    own = ending.accounts[0]
    gain, days = own.end - own.start, own.performance.days
    verb = "earned" if gain > 0 else "lost" if gain < 0 else "neither earned nor lost"
    amount = f" {abs(gain):,.2f} of {own.start:,.0f} ({gain / own.start:+.2%})" if gain else ""
    yield f"In {days:.1f} days this run {verb}{amount}. {_why(ending)}"
    yield f"{_evidence(own)} {_beside(ending)}"


def _why(ending: Ending) -> str:
    """Say where the result came from: prices, or trading costs."""
    own = ending.accounts[0]
    if own.costs is None or not own.activity or not own.costs.fee:
        return "It did not trade: no signal passed its gates."
    costs = own.costs
    paid = costs.fee + costs.spread + costs.slippage
    funding = f"{abs(costs.funding):,.2f} of funding {'paid' if costs.funding >= 0 else 'received'}"
    split = f"Prices moved it by {costs.gross:+,.2f}; fees and spread took {paid:,.2f}, {funding}."
    won = [trade for trade in ending.closed if trade.profit > 0]
    if not ending.closed:
        return f"{split} No trade was closed yet."
    best = max(trade.profit for trade in ending.closed)
    worst = min(trade.profit for trade in ending.closed)
    return (
        f"{split} {len(won)} of {len(ending.closed)} closed trades won, from {worst:+,.2f} to "
        f"{best:+,.2f}."
    )


def _evidence(own: AccountReport) -> str:
    mean, error = own.performance.mean_day, own.performance.error_day
    if mean is None or error is None or not error:
        return "So few days say nothing about any other."
    days = f"these {own.performance.days:.0f} days"
    evidence = (
        f"which is rare by chance and still {days} alone"
        if is_credible(mean, error)
        else f"no evidence of a profit or a loss beyond {days}"
    )
    return f"A day that is {mean * 1e4:+.1f} ± {error * 1e4:.1f} bp, {evidence}."


def _beside(ending: Ending) -> str:
    count = len(ending.record.bars)
    symbols = "both symbols" if count == 2 else "all symbols" if count > 2 else "the symbol"
    held = f"Buy and hold of {symbols}, with all the money: {ending.market:+.2%}."
    if ending.chance is None:
        return held
    return (
        f"{held} Of its timing alone: the same positions at random times did worse in "
        f"{ending.chance.beaten:.0%} of {ending.chance.count} draws."
    )


ACCOUNTS: Final = titled(
    (*ACCOUNT_FIGURES, *COSTS),
    {
        "account": "account",
        "end": "equity",
        "return": "return",
        "gross": "by prices",
        "fee": "fees",
        "max_drawdown": "drawdown",
        "mean_exposure": "exposure",
    },
)


def accounts_table(ending: Ending) -> Table:
    """Return the run beside its twins."""
    return table("accounts", "Accounts", ACCOUNTS, ending.accounts)


# ---------------------------------------------------------------- gates


def _random(of: Refusal) -> str:
    if of.random_low_bp is None or of.random_high_bp is None:
        return ""
    return f"{of.random_low_bp:+.1f} to {of.random_high_bp:+.1f}"


GATES: Final = (
    *titled(
        REFUSALS,
        {
            "gate": "gate",
            "signals": "signals",
            "gross": "made",
            "kept_better": "passed better by",
        },
    ),
    Figure[Refusal]("random", "random gates", "text", _random),
    *titled(REFUSALS, {"said": "so it"}),
)


def gates_sentence(ending: Ending) -> str:
    """Say what the table of gates compares, and its verdict."""
    bars = ending.record.config.gate.horizon
    credible = [f"{of.gate} {of.said}" for of in _judged(ending) if of.said in ("saved", "cost")]
    verdict = (
        f"Credible at 95 %: {', '.join(credible)}."
        if credible
        else "No gate credibly saved or cost anything."
    )
    return (
        f"Signals by what they made in {bars} bars before any cost (fees are saved by refusing "
        f"anything), beside gates that refuse as many at random. {verdict}"
    )


def _judged(ending: Ending) -> list[Refusal]:
    """List the gates of judgement that refused signals, those of most signals first."""
    judged = [
        of
        for of in ending.refusals
        if of.gate != ALLOWED and of.signals and GATES_KNOWN[of.gate].kind is GateKind.JUDGEMENT
    ]
    return sorted(judged, key=lambda of: -of.signals)[:GATES_SHOWN]


def gates_table(ending: Ending) -> Table:
    """Return the table of the gates that refused most."""
    return table("gates", "Refused signals by gate, bp before costs", GATES, _judged(ending))


# ---------------------------------------------------------------- one decision


def explained(stored: StoredDecision) -> Iterator[str]:
    """Yield what one decision was, what it came from, and what would have flipped it."""
    decision = stored.decision
    verdict, reason = verdict_of(decision)
    yield (
        f"{decision['instrument']} at {decision['open_time_iso'][:16]}Z: {decision['action']}, "
        f"{verdict}{reason and f', {reason}'}; target {decision['target_quantity_text'] or 'none'}."
    )
    noted = [
        f"{row['name']} {row['number']:.4g}" for row in stored.notes if row["number"] is not None
    ]
    if noted:
        yield f"It noted: {', '.join(noted)}."
    yield flips_of(stored).sentence
    if stored.no_attribution:
        yield stored.no_attribution
    elif stored.buckets:
        heaviest = sorted(stored.buckets, key=lambda row: -row["weight"])[:LOOKS_SHOWN]
        places = ", ".join(
            f"{row['weight']:.0%} at "
            + ("older bars" if row["bucket"] == "older" else f"{row['from_open_time_iso'][:16]}Z")
            for row in heaviest
        )
        yield f"Its attention lay {places}, by blocks of 64 bars: where it looked, not why."


# ---------------------------------------------------------------- what happened, and what next


def traced(ending: Ending, played: Played | None) -> str:
    """Say how many incidents there were, how prompt the run was, and whether its chain holds."""
    holds = "holds" if ending.chain.holds else f"is broken: {ending.chain.problem}"
    late_ones = "none late" if not ending.late else f"{ending.late} too late to trade"
    incidents = slowest = ""
    if played is not None:
        slowest = f", the slowest stored {played.slowest_s * 1_000:,.0f} ms after its bar closed"
        if outcomes := played.outcomes:
            incidents = f"{len(outcomes)} incidents, {played.starts} processes, one run. "
    return (
        f"{incidents}{ending.decisions:,} decisions, {late_ones}{slowest}. The chain of "
        f"{ending.chain.steps:,} steps {holds}."
    )


def parity_line(check: ParityCheck) -> Text:
    """Return the result of the replay, in the sentence that the daemon says each day."""
    is_well = check.outcome is ParityOutcome.IDENTICAL
    sentence = f"Parity of the run with its replay: {check.reason}."
    return Text(sentence, "" if is_well else "bold red")


def commands(ending: Ending, database: Path) -> tuple[str, ...]:
    """Return the commands to go on with, which run as they stand."""
    program = program_name()
    page = f" --html {database.with_suffix('.html')}"
    sequence = ending.decision.decision["sequence"] if ending.decision else "SEQUENCE"
    return (
        f"{program} ui --db {database} --open",
        f"{program} verify last --db {database}",
        f"{program} explain last:{sequence} --full --db {database}",
        f"{program} report last --db {database}{page}",
    )


def document(ending: Ending, database: Path, played: Played | None) -> dict[str, Any]:
    """Return the end of the show as one JSON document."""
    show_alone: dict[str, Any] = {}
    if played is not None:
        show_alone = {
            "config": str(played.files.config),
            "log": str(played.files.log),
            "slowest_s": played.slowest_s,
            "processes": played.starts,
            "incidents": list(played.outcomes),
        }
    return {
        "run_id": ending.record.run["run_id"],
        "database": str(database),
        "decisions": ending.decisions,
        "late": ending.late,
        **show_alone,
        "accounts": [
            {figure.key: figure.of(account) for figure in ACCOUNTS} for account in ending.accounts
        ],
        "gates": [{figure.key: figure.of(one) for figure in GATES} for one in _judged(ending)],
        "random_beaten": None if ending.chance is None else ending.chance.beaten,
        "market_return": ending.market,
        "explained_sequence": (
            None if ending.decision is None else ending.decision.decision["sequence"]
        ),
        "chain": {"holds": ending.chain.holds, "steps": ending.chain.steps},
    }
