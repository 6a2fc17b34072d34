"""``tracepaper verify|parity|lookahead|recursive|calibrate``."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    ConfigOption,
    DatabaseOption,
    DepthOption,
    FromOption,
    JsonOption,
    SetOption,
    database_path,
    located,
    print_json,
    reads_record,
    say,
)
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, command
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import DAY_MS, RATE_DECIMALS, count_of, iso, unscaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.daemon.config.loading import Config
    from tracepaper.replay.backtest.market_data import MarketData
    from tracepaper.replay.checks.compare import LookaheadFinding
    from tracepaper.replay.checks.parity import FundingCheck, Parity
    from tracepaper.replay.checks.slippage import SlippageFindings
    from tracepaper.replay.checks.verify import Verification
    from tracepaper.storage.database.chunks import RunLocation

SHOWN: Final = 10
"""Differences of a kind that are said."""


@reads_record
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An id, a prefix, last, or FILE#RUN.")],
    *,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Compare only the last steps, so many.")
    ] = None,
    from_: FromOption = None,
    commit: Annotated[
        int | None,
        typer.Option(min=0, metavar="STEP", help="Compare only the commit that holds this step."),
    ] = None,
    funding: Annotated[
        list[Path] | None,
        typer.Option(help="Published funding rates to compare the settlements with; repeat."),
    ] = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Derive a run again from its stored events; exit 1 with the first difference if any."""
    from tracepaper.replay.archive import read_funding
    from tracepaper.replay.archive.columns import instant
    from tracepaper.replay.checks.parity import check_funding, check_of_run, keep_check
    from tracepaper.replay.checks.verify import verify_run
    from tracepaper.storage.checks import CheckedRun
    from tracepaper.storage.database.reader import Reader, resolve

    place = resolve(None if "#" in run else database_path(db), run)
    with Reader.open(place.path) as reader:
        checked = CheckedRun.of(reader, place.run_id)
        histories = [read_funding(path) for path in funding or ()]
        settled = [check_funding(reader, place.run_id, rates) for rates in histories]
        from_ms = None if from_ is None else instant(from_)
        found = verify_run(
            reader, place.path, place.run_id, sample=sample, from_ms=from_ms, commit=commit
        )
        check = check_of_run(reader, found)
    if sample is None and from_ms is None and commit is None:  # a part is no parity of the run
        keep_check(place.path, checked, "verify", check)
    holds = found.holds and all(one.holds for one in settled)
    if json:
        compared = [{**asdict(one), "holds": one.holds} for one in settled]
        print_json({**asdict(found), "funding": compared, "holds": holds})
    elif found.holds:
        rounding = f", {found.tolerated:,} of them within their tolerances" * bool(found.tolerated)
        say(
            f"{found.agreed + found.tolerated:,} of {found.decisions:,} decisions follow from the "
            f"record of run {found.run_id} ({count_of(found.steps, 'step')}){rounding}."
        )
        _say_beginning(found)
        if found.taken:
            say(
                f"{found.taken:,} answers of an outside service are taken from the record: nothing "
                "here says what it would answer now."
            )
        if sys.stdout.isatty():
            say("The links of its chain are another check: `tracepaper audit verify`.")
        if found.elsewhere:
            say(f"Floats were compared within tolerances, since {found.elsewhere}.")
    else:
        _say_why_not(found)
    if not json:
        for one in settled:
            _say_funding(one)
    if not holds:
        raise typer.Exit(1)


def _say_why_not(found: Verification) -> None:
    """Say what does not follow, and who is to blame; or that there was nothing to verify."""
    if not found.differing:
        say(
            f"No decision is among the {found.steps:,} steps of run {found.run_id} that were "
            "compared, so nothing was verified; ask again once it has decided."
        )
        return
    say(
        f"Run {found.run_id} does not follow from its record ({found.to_blame} is to "
        f"blame): {found.likely_cause}."
    )
    for difference in found.differences[:SHOWN]:
        say(
            f"  {difference.instrument} {difference.field}: stored {difference.first}, "
            f"derived {difference.second}"
        )


def _say_beginning(found: Verification) -> None:
    """Say of a run that was not compared whole from where it was, and what covers the rest."""
    if found.from_ms is None:
        return
    since = f"They are those from {iso(found.from_ms)} on"
    if found.state_step is None:
        say(f"{since}; the state before was derived from the run's start.")
    else:
        say(
            f"{since}, step {found.from_step:,}; the state before is the record's, as step "
            f"{found.state_step:,} stored it, and was held to its fills, orders and ledger."
        )
    if found.chained:
        say(
            f"{found.chained:,} decisions that are stored before were not compared: only the chain "
            "covers them (`tracepaper audit verify`)."
        )


def _say_funding(one: FundingCheck) -> None:
    """Say how the settlements of one instrument agree with what was published."""
    say(
        f"{one.booked:,} of {one.published:,} published settlements of {one.instrument} were "
        "booked at the published rate."
    )
    for at, booked, published in one.differing[:SHOWN]:
        rates = (unscaled(rate, RATE_DECIMALS) for rate in (booked, published))
        say(f"  {iso(at)}: booked at {next(rates)}, published at {next(rates)}")
    for what, times in (("not booked", one.missing), ("not published", one.unpublished)):
        for at in times[:SHOWN]:
            say(f"  {iso(at)}: {what}")


@reads_record
def parity(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run, or FILE#RUN.")],
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
    books: Annotated[
        list[Path] | None,
        typer.Option(
            "--books",
            metavar="FILE",
            help="Hold its fills to order books recorded by `data record`; repeat.",
        ),
    ] = None,
    service: Annotated[
        bool,
        typer.Option(
            "--service", help="As the daemon starts it: low priority; ends when stdin closes."
        ),
    ] = False,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two runs, or a day of one with its replay; exit 1 with the first difference if any.

    With one RUN its last full UTC day is replayed from its record, as the daemon does each day; a
    run without a full day as far as it went. --books says how optimistic paper's fills were.
    """
    if books:
        if second is not None or day is not None or service:
            raise ConfigInvalid("--books is of one run; name one RUN, without --day or --service.")
        _beside_books(located(first, None if "#" in first else database_path(db)), books, json)
        return
    if service:
        from tracepaper.daemon.session.child import stay_behind

        stay_behind()  # before what takes seconds to import
    from tracepaper.replay.checks.parity import ComparedRun, compare_runs
    from tracepaper.storage.database.reader import Reader

    if second is None:
        _replay_day(located(first, None if "#" in first else database_path(db)), day, service, json)
        return
    if day is not None or service:
        raise ConfigInvalid("--day and --service are of one run and its replay; name one RUN.")
    one, two = (
        located(spec, None if "#" in spec else database_path(db)) for spec in (first, second)
    )
    with Reader.open(one.path) as a, Reader.open(two.path) as b:
        found = compare_runs(ComparedRun(a, one.run_id), ComparedRun(b, two.run_id))
    if json:
        print_json({**asdict(found), "holds": found.holds})
    else:
        _say(found)
    if not found.holds:
        raise typer.Exit(1)


def _beside_books(place: RunLocation, books: Sequence[Path], json: bool) -> None:  # noqa: FBT001 - an option
    """Say what the market orders of a run would have cost at recorded books."""
    from tracepaper.replay.checks.book_costs import compare_with_books
    from tracepaper.storage.database.reader import Reader

    with Reader.open(place.path) as reader:
        found = compare_with_books(reader, place.run_id, books)
    _show_costs(
        found,
        f"Market orders beside recorded books: {found.orders:,}. Fills of the run: {found.rows:,}.",
        json,
    )


def _replay_day(place: RunLocation, day: str | None, service: bool, json: bool) -> None:  # noqa: FBT001 - options
    """Replay one day of a run from its record, and say whether it is the same."""
    from tracepaper.daemon.session.child import frame_of, take_output
    from tracepaper.replay.archive.columns import instant
    from tracepaper.replay.checks.parity import check_span, keep_check, last_day
    from tracepaper.storage.checks import CheckedRun
    from tracepaper.storage.database.reader import Reader
    from tracepaper.strategies.types.market import ParityOutcome

    output = take_output() if service else None  # a class of the user's may print as well
    with Reader.open(place.path) as reader:
        from_ms = last_day(reader, place.run_id) if day is None else instant(day)
        if from_ms is not None and from_ms % DAY_MS:
            raise ConfigInvalid(f"--day {day} is no day; write it as 2025-05-26 (UTC).")
        until_ms = None if from_ms is None else from_ms + DAY_MS
        checked = CheckedRun.of(reader, place.run_id)
        found = check_span(reader, place.path, place.run_id, from_ms=from_ms, until_ms=until_ms)
    if output is not None:  # the daemon stores the result as an event
        output.write(frame_of(found))
        return
    keep_check(place.path, checked, "parity", found)
    if json:
        print_json(found)
    else:
        say(f"{found.reason}.")
    if found.outcome is not ParityOutcome.IDENTICAL:
        raise typer.Exit(1)


def _say(found: Parity) -> None:
    """Say what agrees, what differs, and where nothing was found out."""
    say(f"{found.identical:,} of {found.compared:,} decisions identical.")
    if found.within_tolerance:
        say(f"{found.within_tolerance:,} more agree within 1e-4 and decide the same.")
    for gate, count in found.timing.items():
        say(f"{count:,} differ only in time ({gate}).")
    if found.first_fill:
        say(
            f"{found.after_first_fill:,} more depend on fills and come after the first that "
            f"differs: {found.first_fill}."
        )
    for name, count in (("first", found.only_in_first), ("second", found.only_in_second)):
        if count:
            say(f"{count:,} bars are only in the {name} run.")
    if found.missing:
        say(f"{found.missing:,} of them lie between bars that both runs decided.")
    for difference in found.differences:
        say(difference.sentence())
    if unproved := _unproved(found):
        say(unproved)


def _unproved(found: Parity) -> str:
    """Say why two runs without a difference do not agree; empty where they do, or differ."""
    if found.holds or found.differences:
        return ""
    if not found.compared:
        return "Nothing was compared: give two runs that decided the same bars."
    return "All that was compared differs in time alone, so nothing shows that the runs agree."


MOST_BARS = 100_000


@command(Consumer.LOOKAHEAD)
def lookahead(
    *,
    spec: RunSpec,
    probes: Annotated[
        int, typer.Option(min=1, help="Points at which the future is changed or cut off.")
    ] = 12,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time limit; the probes that are left are skipped.")
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
    json: JsonOption = False,
) -> None:
    """Check for lookahead bias: hide the future; exit 0 only if no decision changes."""
    from tracepaper.replay.checks.isolation import FreshProcesses
    from tracepaper.replay.checks.lookahead import Limits
    from tracepaper.replay.checks.lookahead import lookahead as check

    config, data = _read(spec)
    most = bars or MOST_BARS
    left = sum(max(0, len(part) - most) for part in data.candles)
    data = data.first(most)
    with FreshProcesses(*_preloaded(config)) as fresh:
        found = check(
            config,
            data,
            fresh,
            Limits(probes, seconds),
            mode=spec.mode,
            allow=allow_reading or (),
            report=_report,
        )
    if left:
        found.unproved.append(f"the {left:,} bars after the first {most:,}; give --bars")
    if json:
        print_json({**asdict(found), "verdict": found.verdict, "holds": found.holds})
    else:
        _print(found)
    if not found.holds:
        raise typer.Exit(1)


@command(Consumer.RECURSIVE)
def recursive(
    *,
    spec: RunSpec,
    probes: Annotated[int, typer.Option(min=1, help="How many later starts to try.")] = 4,
    bars: Annotated[
        int | None, typer.Option(min=10, help="Bars of the data to use; by default enough.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check the warm-up: start later; exit 1 if a decision after the warm-up differs."""
    from tracepaper.daemon.session.build import make_strategies, needs_forecaster, warmup_bars
    from tracepaper.daemon.session.models import load_forecaster
    from tracepaper.replay.backtest.build import fit_windows, span_of
    from tracepaper.replay.checks.isolation import FreshProcesses
    from tracepaper.replay.checks.lookahead import MODEL
    from tracepaper.replay.checks.recursive import recursive as check

    config, data = _read(spec)
    if not data.frames:
        config, shortened = fit_windows(config, span_of(data.candles))
        for sentence in shortened:
            _report(f"Warning: {sentence}.")
    forecaster = load_forecaster(config) if needs_forecaster(config) else None
    strategies = make_strategies(config, forecaster)
    calendar = data.candles[0].calendar
    sessions = None if calendar is None else calendar.sessions
    warmup = warmup_bars(strategies, config, sessions=sessions, makes_frames=not data.frames)
    wanted = min(*map(len, data.candles), bars or 2 * warmup + 1_000)
    if wanted <= warmup:
        # Nothing would differ, for nothing would be decided.
        raise ConfigInvalid(
            f"The strategy is warm after {warmup:,} bars, and {wanted:,} are looked at; give more."
        )
    with FreshProcesses(*((MODEL,) if forecaster is not None else ())) as fresh:
        found = check(
            config,
            data.first(wanted),
            fresh,
            probes=probes,
            warmup=warmup,
            mode=spec.mode,
            report=_report,
        )
    if json:
        said = {"check": "recursive", **asdict(found), "holds": found.holds}
        print_json({**said, "warmup": warmup, "bars": wanted})
    elif found.holds:
        typer.echo(
            f"recursive: {found.probes} probes over {wanted:,} bars, {found.compared:,} steps "
            "compared, nothing moved."
        )
    else:
        typer.echo(f"recursive: {found.sentence()}")
    if not found.holds:
        raise typer.Exit(1)


def _preloaded(config: Config) -> list[str]:
    """Return the slow packages that the model needs, to be loaded once for all processes."""
    from tracepaper.daemon.config.values import ASKS
    from tracepaper.daemon.session.build import needs_forecaster
    from tracepaper.daemon.session.user_code import packages_of
    from tracepaper.daemon.session.user_model import model_class
    from tracepaper.replay.checks.lookahead import MODEL

    if name := config.model.own_class:
        return packages_of(model_class(name))
    asks_torch = needs_forecaster(config) or config.strategy.name in ASKS
    return [MODEL] if asks_torch else []


def _read(spec: RunSpec) -> tuple[Config, MarketData]:
    """Return the data of *spec*, aggregated to the interval of their configuration, and this."""
    from tracepaper.replay.archive.candles import resample
    from tracepaper.replay.backtest.build import configuration
    from tracepaper.replay.backtest.market_data import MarketData
    from tracepaper.replay.backtest.tracks import with_depth

    data = MarketData.read(spec)
    config = configuration(spec.given, data.candles)
    candles = [resample(part, config.market.interval_ms) for part in data.candles]
    market = with_depth(config.market, data.depth)
    return config.model_copy(update={"market": market}), replace(data, candles=candles)


def _print(found: LookaheadFinding) -> None:
    """Say the verdict with what was probed, then what it depends on, and what stays open."""
    typer.echo(f"lookahead: {found.sentence()}")
    for sentence in found.depends:
        typer.echo(f"To know: {sentence}.")
    for sentence in found.unproved:
        typer.echo(f"Cannot be proved: {sentence}.")


def _report(sentence: str) -> None:
    typer.echo(sentence, err=True)


def calibrate(
    fills: Annotated[
        Path, typer.Argument(metavar="FILLS", help="Your own fills: Bybit's export as CSV.")
    ],
    *,
    candles: Annotated[
        list[str] | None,
        typer.Option("--candles", metavar="PATH", help="Candles of those days; repeat."),
    ] = None,
    columns: ColumnsOption = None,
    depth: DepthOption = None,
    config: ConfigOption = None,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Compare your real fills with what paper would have had; propose slippage and latency."""
    from tracepaper.daemon.config.loading import load, with_settings
    from tracepaper.daemon.session.build import costs_for
    from tracepaper.replay.archive.executions import read_executions
    from tracepaper.replay.checks import slippage
    from tracepaper.replay.checks.paper_fills import paper_by

    execution = (given := load(with_settings(config, settings))).execution
    paper = paper_by(candles, depth, execution.model, columns or ())
    found = slippage.calibrate(
        read_executions(fills), paper, costs_for(given), execution.latency_ms
    )
    _show_costs(
        found,
        f"{found.orders:,} orders of {found.rows:,} rows beside paper's fills by {found.model}.",
        json,
    )


def _show_costs(found: SlippageFindings, what: str, json: bool) -> None:  # noqa: FBT001 - an option
    """Show *found*, of which *what* says how much was compared."""
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.checks import slippage
    from tracepaper.replay.document.terminal import show

    if json:
        print_json(slippage.as_document(found))
        return
    show(Terminal(), slippage.parts_of(found, what))
