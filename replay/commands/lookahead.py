"""``tracepaper lookahead`` and ``recursive``: decisions depend on what they may, and no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from tracepaper.daemon.config import Config
    from tracepaper.replay.importers import Candles
    from tracepaper.replay.lookahead import Finding

DataOption = Annotated[
    str, typer.Option("--data", metavar="PATH", help="Candles: PATH or SYMBOL=PATH.")
]
ProbesOption = Annotated[int, typer.Option(min=1, help="How many bars to probe.")]
BarsOption = Annotated[
    int | None, typer.Option(min=10, help="Bars of the data to use; by default enough.")
]
PathOption = Annotated[str, typer.Option(help="How the model goes over the bars: scan or step.")]


def lookahead(
    data: DataOption,
    *,
    probes: ProbesOption = 12,
    bars: BarsOption = None,
    path: PathOption = "scan",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Corrupt or cut the future at many bars: no earlier decision may move; exit 1 if one does."""
    from tracepaper.replay.lookahead import lookahead as check

    def run(given: Config, candles: Candles, _warmup: int) -> Finding:
        return check(given, candles, probes=probes, path=path, tell=_tell)

    _perform(run, data, bars, config, as_json=json)


def recursive(
    data: DataOption,
    *,
    probes: ProbesOption = 4,
    bars: BarsOption = None,
    path: PathOption = "scan",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Start later: after the stated warm-up nothing may differ; exit 1 if something does."""
    from tracepaper.replay.lookahead import recursive as check

    def run(given: Config, candles: Candles, warmup: int) -> Finding:
        return check(given, candles, probes=probes, warmup=warmup, path=path, tell=_tell)

    _perform(run, data, bars, config, as_json=json)


def _perform(
    check: Callable[[Config, Candles, int], Finding],
    data: str,
    bars: int | None,
    config: Path | None,
    *,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from tracepaper.daemon.building import needs_forecaster, warmup_bars
    from tracepaper.daemon.commands.options import print_json
    from tracepaper.daemon.models import load_forecaster
    from tracepaper.replay.assembly import configuration
    from tracepaper.replay.importers import read_candles, slice_candles
    from tracepaper.replay.resample import resample
    from tracepaper.strategies.errors import ConfigInvalid

    candles = read_candles(data)
    given = configuration(config, [candles])
    candles = resample(candles, given.market.interval_ms)
    forecaster = load_forecaster(given) if needs_forecaster(given) else None
    warmup = warmup_bars(given, forecaster)
    wanted = min(len(candles), bars or 2 * warmup + 1_000)
    if wanted <= warmup:
        # Nothing would move, for nothing would be decided.
        raise ConfigInvalid(
            f"The strategy is warm after {warmup:,} bars, and {wanted:,} are looked at; give more."
        )
    found = check(given, slice_candles(candles, slice(0, wanted)), warmup)
    if as_json:
        print_json({**asdict(found), "holds": found.holds, "warmup": warmup, "bars": wanted})
    elif found.holds:
        typer.echo(
            f"{found.check}: {found.probes} probes over {wanted:,} bars, {found.compared:,} steps "
            "compared, nothing moved."
        )
    else:
        typer.echo(f"{found.check}: {found.differences[0].sentence()}.")
    if not found.holds:
        raise typer.Exit(1)


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)
