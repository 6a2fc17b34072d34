"""``tracepaper verify|parity|lookahead|recursive``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tracepaper.daemon.commands.options import (
    CommandAnswer,
    ConfigOption,
    DatabaseOption,
    FromOption,
    RunArgument,
    ServiceOption,
    answers,
    database_of,
    located,
    reads_record,
    tell,
)
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, command
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import DAY_MS, RATE_DECIMALS, count_of, iso, unscaled

if TYPE_CHECKING:
    from tracepaper.daemon.config.loading import Config
    from tracepaper.replay.backtest.market_data import MarketData
    from tracepaper.replay.checks.compare import CheckFinding
    from tracepaper.replay.checks.parity import FundingCheck, Parity
    from tracepaper.replay.checks.verify import Verification
    from tracepaper.replay.explain.place import DecisionPlace

SHOWN: Final = 10
"""Most differences that a check prints."""


@reads_record
@answers
def verify(
    run: RunArgument,
    *,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Compare only the last N steps.")
    ] = None,
    from_: FromOption = None,
    commit: Annotated[
        int | None,
        typer.Option(min=0, metavar="STEP", help="Compare only the commit that holds this step."),
    ] = None,
    funding: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of published funding rates to compare the settlements with; repeat."
        ),
    ] = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Derive a run again from its stored events; exit 1 with the first difference, if any."""
    from tracepaper.replay.archive import read_funding
    from tracepaper.replay.archive.columns import instant
    from tracepaper.replay.checks.parity import check_funding, check_of_run, keep_check
    from tracepaper.replay.checks.verify import verify_run
    from tracepaper.storage.database.reader import Reader, resolve

    place = resolve(database_of(run, db, config), run)
    with Reader.open(place.path) as reader:
        checked = reader.stored_run(place.run_id)
        histories = [read_funding(path) for path in funding or ()]
        settled = [check_funding(reader, place.run_id, rates) for rates in histories]
        from_ms = None if from_ is None else instant(from_)
        verification = verify_run(
            reader, place.path, place.run_id, sample=sample, from_ms=from_ms, commit=commit
        )
        check = check_of_run(reader, verification)
    if sample is None and from_ms is None and commit is None:  # only a check of the whole run
        keep_check(place.path, checked, "verify", check)
    passes = verification.passes and all(funding_check.passes for funding_check in settled)
    funding_documents = [{**asdict(check), "passes": check.passes} for check in settled]
    lines = [*(_verified if verification.passes else _why_not)(verification)]
    lines += [line for funding_check in settled for line in _funding(funding_check)]
    document = {**asdict(verification), "funding": funding_documents, "passes": passes}
    return CommandAnswer(document, "\n".join(lines), int(not passes))


def _verified(verification: Verification) -> Iterator[str]:
    """Yield sentences for a check that passes: counts, the period compared, and limits."""
    rounding = f", {verification.tolerated:,} of them within their tolerances" * bool(
        verification.tolerated
    )
    yield (
        f"{verification.agreed + verification.tolerated:,} of {verification.decisions:,} "
        f"decisions follow from the record of run {verification.run_id} "
        f"({count_of(verification.steps, 'step')}){rounding}."
    )
    yield from _beginning(verification)
    if (before := verification.before) is not None:
        begins = (
            f"It begins with the account of run {before.run_id} after step {before.last_step:,}"
        )
        if verification.is_before_here:
            yield f"{begins}, which follows from that run's record."
        else:
            yield (
                f"{begins} at digest {before.digest}, which another file holds; its end was not "
                "compared."
            )
    if verification.taken:
        yield (
            f"{verification.taken:,} answers of an outside service are taken from the record; "
            "the service was not asked again."
        )
    if verification.elsewhere:
        yield f"Floats were compared within tolerances, since {verification.elsewhere}."


def _why_not(verification: Verification) -> Iterator[str]:
    """Yield sentences for a check that fails: the cause and differences, or nothing to verify."""
    if not verification.differing:
        yield (
            f"No decision is among the {verification.steps:,} steps of run {verification.run_id} "
            "that were compared, so nothing was verified; ask again once it has decided."
        )
        return
    yield (
        f"Run {verification.run_id} does not follow from its record ({verification.to_blame} is to "
        f"blame): {verification.likely_cause}."
    )
    for difference in verification.differences[:SHOWN]:
        yield (
            f"  {difference.instrument} {difference.field}: stored {difference.first}, "
            f"derived {difference.second}"
        )


def _beginning(verification: Verification) -> Iterator[str]:
    """Yield where a partial comparison begins, and what covers the steps before."""
    if verification.from_ms is None:
        return
    since = f"They are those from {iso(verification.from_ms)} on"
    if verification.state_step is None:
        yield f"{since}; the state before was derived from the run's start."
    else:
        yield (
            f"{since}, step {verification.from_step:,}; the state before is the record's, as step "
            f"{verification.state_step:,} stored it, and was held to its fills, orders and ledger."
        )
    if verification.chained:
        yield (
            f"{verification.chained:,} decisions that are stored before were not compared: only "
            "the chain covers them (`tracepaper audit verify`)."
        )


def _funding(funding_check: FundingCheck) -> Iterator[str]:
    """Yield how the settlements of one instrument agree with the published rates."""
    yield (
        f"{funding_check.booked:,} of {funding_check.published:,} published settlements of "
        f"{funding_check.instrument} were booked at the published rate."
    )
    for at, *rates in funding_check.differing[:SHOWN]:
        booked, published = (
            f"not {name}" if rate is None else f"{name} at {unscaled(rate, RATE_DECIMALS)}"
            for name, rate in zip(("booked", "published"), rates, strict=True)
        )
        yield f"  {iso(at)}: {booked}, {published}"


@reads_record
@answers
def parity(
    first: Annotated[
        str,
        typer.Argument(
            metavar="RUN[:WHERE]",
            help="A run, or FILE#RUN; WHERE, as for explain, compares only this bar.",
        ),
    ],
    second: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="The run to compare it with; by default its replay."),
    ] = None,
    *,
    day: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Replay this UTC day, such as 2025-05-26; by default the last."
        ),
    ] = None,
    service: ServiceOption = False,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer | None:
    """Compare two runs, or a day of a run with its replay; exit 1 with the first difference.

    With one RUN its last full UTC day is replayed from its record, as the daemon does each day; a
    run without a full day is replayed as far as it went.
    """
    from tracepaper.replay.explain.place import locate, names_place

    if service:
        from tracepaper.daemon.session.child import limit_this_process

        limit_this_process()  # before the slow imports
    if (day is not None or service) and (second is not None or names_place(first)):
        raise ConfigInvalid("--day and --service need a single RUN, without WHERE.")
    from tracepaper.replay.checks.parity import ComparedRun, compare_runs
    from tracepaper.replay.explain.place import decided_open_ms
    from tracepaper.storage.database.reader import Reader

    if second is None:
        return _replay_day(locate(first, database_of(first, db, config)), day, service=service)
    first_place = locate(first, database_of(first, db, config))
    second_place = located(second, db, config)
    with Reader.open(first_place.path) as a, Reader.open(second_place.path) as b:
        open_ms = None
        if first_place.sequence is not None:
            open_ms = decided_open_ms(a, first_place.run_id, first_place.sequence)
        comparison = compare_runs(
            ComparedRun(a, first_place.run_id, open_ms),
            ComparedRun(b, second_place.run_id, open_ms),
        )
    document = {**asdict(comparison), "passes": comparison.passes}
    return CommandAnswer(document, "\n".join(_compared(comparison)), int(not comparison.passes))


def _replay_day(place: DecisionPlace, day: str | None, *, service: bool) -> CommandAnswer | None:
    """Replay one day of a run, or the bar of *place*, from its record; compare the decisions."""
    from tracepaper.daemon.session.child import frame_of, reserve_stdout
    from tracepaper.replay.archive.columns import instant
    from tracepaper.replay.checks.parity import check_span, keep_check, last_day
    from tracepaper.replay.explain.place import decided_open_ms
    from tracepaper.storage.database.reader import Reader
    from tracepaper.strategies.types.market import ParityOutcome

    output = reserve_stdout() if service else None  # a user's class may print to stdout
    with Reader.open(place.path) as reader:
        if place.sequence is not None:
            from_ms: int | None = decided_open_ms(reader, place.run_id, place.sequence)
        else:
            from_ms = last_day(reader, place.run_id) if day is None else instant(day)
            if from_ms is not None and from_ms % DAY_MS:
                raise ConfigInvalid(f"--day {day} is not a UTC day; write it as 2025-05-26.")
        length_ms = DAY_MS if place.sequence is None else 1
        until_ms = None if from_ms is None else from_ms + length_ms
        checked = reader.stored_run(place.run_id)
        check = check_span(reader, place.path, place.run_id, from_ms=from_ms, until_ms=until_ms)
    if output is not None:  # the daemon stores the result as an event
        output.write(frame_of(check))
        return None
    if place.sequence is None:  # the check of one bar is not the newest check of the run
        keep_check(place.path, checked, "parity", check)
    return CommandAnswer(
        check, f"{check.reason}.", int(check.outcome is not ParityOutcome.IDENTICAL)
    )


def _compared(comparison: Parity) -> Iterator[str]:
    """Yield sentences: the decisions that agree, those that differ, and those not compared."""
    yield f"{comparison.identical:,} of {comparison.compared:,} decisions identical."
    if comparison.within_tolerance:
        yield f"{comparison.within_tolerance:,} more agree within 1e-4 and decide the same."
    for gate, count in comparison.timing.items():
        yield f"{count:,} differ only in time ({gate})."
    if comparison.first_fill:
        yield (
            f"{comparison.after_first_fill:,} more depend on fills and come after the first that "
            f"differs: {comparison.first_fill}."
        )
    for name, count in (("first", comparison.only_in_first), ("second", comparison.only_in_second)):
        if count:
            yield f"{count:,} bars are only in the {name} run."
    if comparison.missing:
        yield f"{comparison.missing:,} of them lie between bars that both runs decided."
    yield from (difference.sentence() for difference in comparison.differences)
    if comparison.passes or comparison.differences:
        return
    if comparison.compared:
        yield "All that was compared differs in time alone, so nothing shows that the runs agree."
    else:
        yield "Nothing was compared: give two runs that decided the same bars."


MOST_BARS = 100_000


@command(Consumer.LOOKAHEAD)
@answers
def lookahead(
    *,
    spec: RunSpec,
    probes: Annotated[
        int, typer.Option(min=1, help="Bars after which the data are changed or cut off.")
    ] = 12,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time limit; the remaining probes are skipped.")
    ] = 300.0,
    allow_reading: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="File, folder, address or variable that the class may read; repeat.",
        ),
    ] = None,
    bars: Annotated[
        int | None,
        typer.Option(min=10, help=f"Bars of each file to use; by default up to {MOST_BARS:,}."),
    ] = None,
) -> CommandAnswer:
    """Check for lookahead bias by hiding later bars; exit 0 only if no decision changes."""
    from tracepaper.replay.checks.isolation import FreshProcesses
    from tracepaper.replay.checks.lookahead import Limits
    from tracepaper.replay.checks.lookahead import lookahead as check

    config, data = _read(spec)
    limit = bars or MOST_BARS
    unused = sum(max(0, len(part) - limit) for part in data.candles)
    data = data.first(limit)
    with FreshProcesses(*_preloaded(config)) as fresh:
        finding = check(
            config,
            data,
            fresh,
            Limits(probes, seconds),
            mode=spec.mode,
            allow=allow_reading or (),
            report=tell,
        )
    if unused:
        option = "--bars" if bars is None else "more --bars"
        finding.unproved.append(f"the {unused:,} bars after the first {limit:,}; give {option}")
    return _verdict(finding)


@command(Consumer.RECURSIVE)
@answers
def recursive(
    *,
    spec: RunSpec,
    probes: Annotated[int, typer.Option(min=1, help="How many later starts to try.")] = 4,
    bars: Annotated[
        int | None,
        typer.Option(min=10, help="Bars of the data to use; by default as many as needed."),
    ] = None,
) -> CommandAnswer:
    """Check the warm-up: start later, and look back further; exit 1 if decisions differ."""
    from tracepaper.daemon.session.build import make_strategies, needs_forecaster, warmup_bars
    from tracepaper.daemon.session.models import load_forecaster
    from tracepaper.replay.backtest.build import build, fit_windows
    from tracepaper.replay.backtest.longer_history import Rehearsal
    from tracepaper.replay.checks.isolation import FreshProcesses
    from tracepaper.replay.checks.lookahead import recursive as check

    config, data = _read(spec)
    if not data.frames:
        config, shortened = fit_windows(config, data.span_ms)
        for sentence in shortened:
            tell(f"Warning: {sentence}.")
    forecaster = load_forecaster(config) if needs_forecaster(config) else None
    strategies = make_strategies(config, forecaster)
    calendar = data.candles[0].calendar
    sessions = None if calendar is None else calendar.sessions
    warmup = warmup_bars(strategies, config, sessions=sessions, makes_frames=not data.frames)
    used = min(*map(len, data.candles), bars or 2 * warmup + 1_000)
    if used <= warmup:  # nothing is decided, so nothing could differ
        raise ConfigInvalid(
            f"The strategy needs {warmup:,} bars to warm up, and {used:,} are used; give more."
        )
    with FreshProcesses(*_preloaded(config)) as fresh:
        finding = check(
            config,
            data.first(used),
            fresh,
            probes=probes,
            warmup=warmup,
            mode=spec.mode,
            report=tell,
        )
    data = data.first(bars or MOST_BARS)
    run = Rehearsal(build(config, data, started_at_ms=0), data)
    if not finding.differences:
        finding.changed, finding.tried = run.doubled(MOST_BARS)
        if (short := run.short_history(seconds=math.inf, tried=MOST_BARS)) is not None:
            finding.short_history = short.sentence
    return _verdict(finding)


def _verdict(finding: CheckFinding) -> CommandAnswer:
    """Return the answer of a check."""
    lines = [f"{finding.check}: {finding.sentence()}"]
    lines += [f"Cannot be proved: {sentence}." for sentence in finding.unproved]
    document = {**asdict(finding), "verdict": finding.verdict, "passes": finding.passes}
    return CommandAnswer(document, "\n".join(lines), int(not finding.passes))


def _preloaded(config: Config) -> list[str]:
    """Return the slow modules of the model, which the fork server loads once."""
    from tracepaper.daemon.config.values import MODEL_INPUTS
    from tracepaper.daemon.session.build import needs_forecaster
    from tracepaper.daemon.session.user_code import packages_of
    from tracepaper.daemon.session.user_model import model_class
    from tracepaper.replay.checks.lookahead import MODEL

    if name := config.model.custom_class:
        return packages_of(model_class(name))
    needs_torch = needs_forecaster(config) or config.strategy.name in MODEL_INPUTS
    return [MODEL] if needs_torch else []


def _read(spec: RunSpec) -> tuple[Config, MarketData]:
    """Return the configuration of *spec*, and its data resampled to the configured interval."""
    from tracepaper.daemon.session.build import with_usual_warmup
    from tracepaper.replay.backtest.build import configuration
    from tracepaper.replay.backtest.market_data import MarketData
    from tracepaper.replay.backtest.tracks import with_depth

    data = MarketData.read(spec)
    config = with_usual_warmup(configuration(spec.given, data), data.span_ms)
    candles = [part.resampled(config.market.interval_ms) for part in data.candles]
    market = with_depth(config.market, data.depth)
    return config.model_copy(update={"market": market}), replace(data, candles=candles)
