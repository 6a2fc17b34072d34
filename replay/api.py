"""``tracepaper.backtest``: a backtest from Python.

    import tracepaper

    run = tracepaper.backtest("sma_cross", "BTCUSDT-1m.csv", params={"fast": 20, "slow": 100})
    print(run)
    run.trades                     # a frame of polars or pandas, else columns of numpy
    run.stats                      # its figures as a pandas Series
    run.plot()                     # a picture, in a notebook
    run.show()                     # its page, in a notebook
    run.report(html="run.html")

It makes the run that ``tracepaper replay`` makes, by the same function. The rules are
docs/python.md, Y1 to Y9.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.session.user_class import known_class
from tracepaper.daemon.session.user_code import has_source
from tracepaper.replay import notebook
from tracepaper.replay.backtest.make import make_run
from tracepaper.replay.backtest.run import Watch
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, spec_of
from tracepaper.replay.backtest.strategy_keys import (
    NO_SOURCE,
    check_current,
    process_warnings,
    strategy_keys,
    strategy_name,
)
from tracepaper.replay.dataframes import Library, frames_for
from tracepaper.replay.run import Run
from tracepaper.strategies.errors import ConfigInvalid

CALLER: Final = "the call of backtest"


def backtest(  # noqa: PLR0913 - the options of a replay
    strategy: str | type | None,
    data: Any,  # noqa: ANN401 - a path, candles, a frame, or several
    *,
    params: Mapping[str, Any] | None = None,
    config: str | Path | Sections | None = None,
    cash: str | float | Decimal | None = None,
    db: str | Path | None = None,
    start: str | float | date | None = None,
    end: str | float | date | None = None,
    funding: str | Path | Sequence[str | Path] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
    columns: Mapping[str, str | None] | None = None,
    depth: str | Path | Sequence[str | Path] = (),
    frames: Library | None = None,
    progress: bool | None = None,
) -> Run[Any]:
    """Run *strategy* over *data* with the daemon's engine; return the run.

    *strategy* is a built-in name, ``module:Class``, a class, or None for the configuration's.
    *data* is a path or ``SYMBOL=PATH``, a frame of polars or pandas or a dictionary of columns, a
    dictionary of any of these by symbol, or a list of them. *params* are keys of ``[strategy]`` for
    a built-in name, and the options of a class. *config* is a TOML file or a dictionary of
    sections, ``{"sizing": {"mode": "fixed", "quantity": "0.1"}}``; without it ``tracepaper.toml``
    of the working folder is used, as on the command line. *cash* is its ``account.cash``. *db* is
    the database that stores the run; with None the run is removed with the result. *start*
    (included) and *end* (excluded) bound the period: ISO text, UTC milliseconds, or a date.
    *funding* are files of settled rates, *frame_data* candles of higher timeframes that begin
    before the data. *columns* name a field's column, ``{"close": "Price"}``, or leave it out,
    ``{"turnover": None}``, in *data* and *frame_data*. *depth* are files of order books that
    ``tracepaper data record`` wrote. *frames* is ``polars``, ``pandas`` or ``numpy``: the library
    of the run's frames; by default that of *data*, else polars if it is installed. A notebook shows
    a progress bar unless *progress* is False.

    Raises ``ConfigInvalid``, ``DataInvalid`` or ``StrategyFailed``, each in one sentence.
    """
    spec = spec_of(Consumer.BACKTEST, locals())
    library = frames_for(data, frames)
    with ExitStack() as stack:
        classes: tuple[type, ...] = ()
        if isinstance(strategy, type):
            check_current(strategy)
            classes = (strategy,)
            strategy = stack.enter_context(known_class(strategy))
        chosen = strategy_name(strategy)
        overrides: dict[str, Any] = (
            {} if chosen is None else {"strategy": strategy_keys(chosen, params, spec.given)}
        )
        if cash is not None:
            overrides["account"] = {"cash": str(cash)}
        if chosen is None and params:
            raise ConfigInvalid("params are options of a strategy; name it as the first argument.")
        with notebook.progress("bars", wanted=progress) as advance:
            watch = Watch(
                lambda replay: nullcontext(lambda bars: advance(bars, replay.feed.bar_count))
            )
            called = replace(
                spec, overrides=overrides, caller=CALLER, warnings=process_warnings(classes)
            )
            return run_of_spec(called, classes, watch, library)


def run_of_spec(
    spec: RunSpec,
    classes: tuple[type, ...],
    watch: Watch | None = None,
    library: Library | None = None,
) -> Run[Any]:
    """Make the run of *spec* in its database, or in a file that lives with the result."""
    folder = None if spec.database else Path(tempfile.mkdtemp(prefix="tracepaper-"))
    path = spec.database or Path(f"{folder}") / "run.db"
    try:
        run = make_run(replace(spec, database=path), watch)
        for strategy_class in classes:
            if not has_source(strategy_class):
                warnings.warn(f"{NO_SOURCE.format(strategy_class.__name__)}.", stacklevel=3)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return Run(run.database, run.run_id, classes, folder=folder, frames=library)
