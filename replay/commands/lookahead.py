"""``tracepaper lookahead`` and ``recursive``: decisions depend on what they may, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, DepthOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.daemon.config.loading import Config
    from tracepaper.replay.archive import Candles
    from tracepaper.replay.archive.depth import RecordedDepth
    from tracepaper.replay.checks.lookahead import LookaheadFinding

MOST_BARS = 100_000
DataOption = Annotated[
    list[str],
    typer.Option("--data", metavar="PATH", help="Candles: PATH or SYMBOL=PATH; repeat."),
]
FrameOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH", help="Candles of a higher time frame, from before the data; repeat."
    ),
]
ModeOption = Annotated[str, typer.Option(help="How the model goes over the bars: scan or step.")]


def lookahead(
    data: DataOption,
    *,
    probes: Annotated[int, typer.Option(min=1, help="Futures to corrupt or cut off.")] = 12,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time after which what is left is not probed.")
    ] = 300.0,
    allow_reading: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="What the class may read: a file, folder, address or variable; repeat.",
        ),
    ] = None,
    bars: Annotated[
        int | None,
        typer.Option(min=10, help=f"Bars of each file to use; by default up to {MOST_BARS:,}."),
    ] = None,
    frame_data: FrameOption = None,
    depth: DepthOption = None,
    mode: ModeOption = "scan",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take away the future, and what else no decision may know; exit 1 unless none moves."""
    from dataclasses import asdict

    from tracepaper.daemon.commands.options import print_json
    from tracepaper.replay.checks.lookahead import Limits
    from tracepaper.replay.checks.lookahead import lookahead as check
    from tracepaper.replay.checks.processes import FreshProcesses

    given, candles = _given(data, config)
    most = bars or MOST_BARS
    left = sum(max(0, len(part) - most) for part in candles)
    looked_at = _first(candles, most)
    given, books = _with_books(given, looked_at, depth)
    if not frame_data:
        given = _fitted(given, looked_at)
    with FreshProcesses(*_preloaded(given)) as fresh:
        found = check(
            given,
            looked_at,
            fresh,
            Limits(probes, seconds),
            mode=mode,
            allow=allow_reading or (),
            report=_report,
            frames=_frames(frame_data),
            depth=books,
        )
    if left:
        found.unproved.append(f"the {left:,} bars after the first {most:,}; give --bars")
    if json:
        print_json({**asdict(found), "verdict": found.verdict, "holds": found.holds})
    else:
        _print(found)
    if not found.holds:
        raise typer.Exit(1)


def recursive(
    data: DataOption,
    *,
    probes: Annotated[int, typer.Option(min=1, help="How many later starts to try.")] = 4,
    bars: Annotated[
        int | None, typer.Option(min=10, help="Bars of the data to use; by default enough.")
    ] = None,
    frame_data: FrameOption = None,
    depth: DepthOption = None,
    mode: ModeOption = "scan",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Start later: after the stated warm-up nothing may differ; exit 1 if something does."""
    from dataclasses import asdict

    from tracepaper.daemon.commands.options import print_json
    from tracepaper.daemon.session.build import make_strategies, needs_forecaster, warmup_bars
    from tracepaper.daemon.session.models import load_forecaster
    from tracepaper.replay.checks.lookahead import MODEL
    from tracepaper.replay.checks.processes import FreshProcesses
    from tracepaper.replay.checks.recursive import recursive as check
    from tracepaper.strategies.errors import ConfigInvalid

    given, candles = _given(data, config)
    given, books = _with_books(given, candles, depth)
    if not frame_data:
        given = _fitted(given, candles)
    forecaster = load_forecaster(given) if needs_forecaster(given) else None
    strategies = make_strategies(given, forecaster)
    frames = _frames(frame_data)
    sessions = None if candles[0].calendar is None else candles[0].calendar.sessions
    warmup = warmup_bars(strategies, given, sessions=sessions, makes_frames=not frames)
    wanted = min(*map(len, candles), bars or 2 * warmup + 1_000)
    if wanted <= warmup:
        # Nothing would differ, for nothing would be decided.
        raise ConfigInvalid(
            f"The strategy is warm after {warmup:,} bars, and {wanted:,} are looked at; give more."
        )
    candles = _first(candles, wanted)
    with FreshProcesses(*((MODEL,) if forecaster is not None else ())) as fresh:
        found = check(
            given,
            candles,
            fresh,
            probes=probes,
            warmup=warmup,
            mode=mode,
            report=_report,
            frames=frames,
            depth=books,
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


def _preloaded(given: Config) -> list[str]:
    """Return the slow packages that the model needs, to be loaded once for all processes."""
    from tracepaper.daemon.config.sections import ORDERBOOK
    from tracepaper.daemon.session.build import needs_forecaster
    from tracepaper.daemon.session.sources import packages_of
    from tracepaper.daemon.session.user_model import model_class
    from tracepaper.replay.checks.lookahead import MODEL

    if name := given.model.own_class:
        return packages_of(model_class(name))
    asks_torch = needs_forecaster(given) or given.strategy.name == ORDERBOOK
    return [MODEL] if asks_torch else []


def _given(data: Sequence[str], file: Path | None) -> tuple[Config, list[Candles]]:
    """Return the configuration for *data*, and their candles aggregated to its interval."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.replay.archive.candles import resample
    from tracepaper.replay.backtest.build import configuration, read_market

    candles = read_market(load(file).market, data)
    given = configuration(file, candles)
    return given, [resample(part, given.market.interval_ms) for part in candles]


def _fitted(given: Config, candles: Sequence[Candles]) -> Config:
    """Return *given* with the windows that a replay of *candles* takes, and say which."""
    from tracepaper.replay.backtest.build import fit_windows, span_of

    fitted, said = fit_windows(given, span_of(candles))
    for sentence in said:
        _report(f"Warning: {sentence}.")
    return fitted


def _frames(paths: Sequence[str] | None) -> list[Candles]:
    from tracepaper.replay.archive import read_candles

    return [read_candles(path) for path in paths or ()]


def _with_books(
    given: Config, candles: Sequence[Candles], paths: Sequence[Path] | None
) -> tuple[Config, list[RecordedDepth]]:
    """Return *given* with the levels and the pace of the books of *paths*, and these."""
    from tracepaper.replay.archive.depth import read_depth
    from tracepaper.replay.backtest.depth import refuse_elsewhere, with_depth

    books = [read_depth(path) for path in paths or ()]
    given = given.model_copy(update={"market": with_depth(given.market, books)})
    refuse_elsewhere(books, candles)
    return given, books


def _first(candles: Sequence[Candles], most: int) -> list[Candles]:
    from tracepaper.replay.archive import slice_candles

    return [slice_candles(part, slice(0, most)) for part in candles]


def _print(found: LookaheadFinding) -> None:
    """Say the verdict with what was probed, then what it depends on, and what stays open."""
    typer.echo(f"lookahead: {found.sentence()}")
    for sentence in found.depends:
        typer.echo(f"To know: {sentence}.")
    for sentence in found.unproved:
        typer.echo(f"Cannot be proved: {sentence}.")


def _report(sentence: str) -> None:
    typer.echo(sentence, err=True)
