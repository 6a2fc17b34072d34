"""``tracepaper sweep``: many configurations on the same data, and how much of the best is luck."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tracepaper.daemon.commands.options import (
    CandlesArgument,
    ConfigOption,
    DepthOption,
    FrameDataOption,
    FromOption,
    FundingOption,
    JsonOption,
    SymbolOption,
    ToOption,
)

if TYPE_CHECKING:
    from tracepaper.replay.python import Backtest
    from tracepaper.replay.sweep.objectives import Objective


def sweep(
    files: CandlesArgument = None,
    *,
    space: Annotated[
        list[str],
        typer.Option(
            metavar="OPTION=VALUES",
            help="5,10,20 or 5..50 or 5..50:5 or 0.1..10:log; OPTION of the strategy, or "
            "section.key; repeat.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH", help="Candles: PATH or SYMBOL=PATH; repeat."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="A figure of the report by its key, or module:function of a run.")
    ] = "sharpe",
    strategy: Annotated[
        str | None, typer.Option(help="A name or module:Class; by default the configured one.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="grid, random or tpe.")] = "grid",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Points that random and tpe draw; by default 100.")
    ] = None,
    seed: Annotated[int, typer.Option(help="What random and tpe draw by.")] = 0,
    walk: Annotated[
        str | None,
        typer.Option(metavar="TRAIN/TEST", help="Windows such as 90d/30d; choose, then test."),
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="maximize or minimize, where the figure does not say it.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core.")
    ] = None,
    limit: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="What one run may take.")
    ] = 600.0,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where its cells are kept; by default a name of what is swept."
        ),
    ] = None,
    from_: FromOption = None,
    to: ToOption = None,
    symbol: SymbolOption = None,
    funding: FundingOption = None,
    frame_data: FrameDataOption = None,
    depth: DepthOption = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write one page that needs no network."),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Try many configurations on the same candles; say how much of the best one is luck.

    The same command goes on where an interrupted one stopped. Exit 1 where every run failed.
    """
    from tracepaper.daemon.commands.options import print_json
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.sweep.request import read_request, state_beside
    from tracepaper.replay.sweep.run import carry_out_sweep, executor_for
    from tracepaper.replay.sweep.show import show_sweep
    from tracepaper.replay.sweep.space import axis_of_text
    from tracepaper.strategies.errors import ConfigInvalid
    from tracepaper.strategies.extras import require

    given = [*(files or ()), *(data or ())]
    require("plotly", "--html", html)
    require("optuna", f"--sampler {sampler}", sampler in {"random", "tpe"})
    if not given:
        raise ConfigInvalid("Give candles: tracepaper sweep PATH, or --data PATH for each file.")
    axes = [axis_of_text(text) for text in space]
    if len({axis.name for axis in axes}) < len(axes):
        raise ConfigInvalid("--space names an option twice; give all its values at once.")
    request = read_request(
        strategy,
        given,
        {axis.name: axis for axis in axes},
        _objective(objective),
        config=config,
        sampler=sampler,
        trials=trials,
        seed=seed,
        windows=walk,
        direction=direction,
        limit_s=limit,
        start=from_,
        end=to,
        symbol=symbol,
        funding=tuple(funding or ()),
        frame_data=frame_data,
        depth=tuple(depth or ()),
    )
    kept = state or state_beside(request)
    with _progress(quiet=json or not sys.stderr.isatty()) as progress:
        found = carry_out_sweep(request, executor_for(request, jobs), state=kept, progress=progress)
    if html is not None:
        found.report(html=html)
    if json:
        print_json(found.document())
    else:
        show_sweep(Terminal(), found)
        typer.echo(f"Its cells are in {kept}" + (f", the page is {html}." if html else "."))
    if found.best is None:
        raise typer.Exit(1)


def _objective(text: str) -> Objective:
    """Return the figure's key, or the function that ``module:function`` names."""
    if ":" not in text:
        return text
    from tracepaper.daemon.session.user_class import imported
    from tracepaper.strategies.errors import ConfigInvalid

    found = imported(text, key="--objective")
    if not callable(found):
        raise ConfigInvalid(f"--objective {text} is no function; name one as module:function.")
    return cast("Callable[[Backtest], float]", found)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int, float | None], None]]:
    """Show runs, the time left and the best so far on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    if quiet:
        yield lambda _done, _of, _best: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("runs", total=None, best="")

        def advance(done: int, of: int, best: float | None) -> None:
            said = "" if best is None else f"best {best:.4g}"
            bar.update(task, completed=done, total=of, best=said)

        yield advance
