"""Train a candidate on a database's bars, and compare it with the running model on untouched time.

Both models make their forecasts as in a run.

The rules are docs/operations.md, O11 to O19.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.retraining import (
    BARS,
    CANDIDATE,
    CandidateJudgement,
    one_sided,
    remove_temporary_files,
)
from tracepaper.daemon.session.run_row import preflight_engine
from tracepaper.replay.archive.candle_file import Lines, file_name, lines_of, write_lines
from tracepaper.replay.learning.baselines import unfitted
from tracepaper.replay.learning.dataset import Dataset, read_files
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.holdouts import HoldoutUse, count_use, uses_path
from tracepaper.replay.learning.judge.forecasts import Forecasts, forecasts_of
from tracepaper.replay.learning.judge.judge import answers_of
from tracepaper.replay.learning.judge.metrics import LOSSES, compare
from tracepaper.replay.learning.recipe import as_recipe, over, read_recipe, recipe_of
from tracepaper.replay.learning.recipe_data import DataRequest
from tracepaper.replay.learning.splits import split_of
from tracepaper.replay.learning.training import FitView, train_seeds
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid
from tracepaper.strategies.other_symbol import other_of
from tracepaper.strategies.types.decisions import RunRow
from tracepaper.strategies.types.market import RetrainOutcome
from tracepaper.strategies.units import DAY_MS, iso

SHARES: Final = (0.8, 0.9)
"""Shares of the bars before the judged time at which training and validation end."""
_RUNNING: Final = "running"
_KEPT: Final[Mapping[str, Callable[[Forecaster], object]]] = {
    "context": lambda model: model.context,
    "horizons": lambda model: list(model.horizons),
    "measures": lambda model: sorted(model.measures),
}
"""What decisions depend on, so that it may not change within a run."""

Say = Callable[[str], None]
Times = NDArray[np.int64]


@dataclass(frozen=True)
class Retraining:
    """The options of one retraining: bars, running model, recipe and judgement.

    An existing ``candidate`` is only judged; without one, a candidate is trained in ``folder``.
    """

    database: Path
    run_id: str
    running: Path  # the folder of the running model
    folder: Path  # for temporary files and the candidate
    judge_ms: int
    min_days: int
    min_bars: int
    data: Sequence[str] = ()
    recipe: Path | None = None  # None: the running model's
    threads: int = 1
    until_ms: int | None = None
    candidate: Path | None = None


class _NotJudged(Exception):
    """Why no candidate was judged; no error, and without a full stop."""


def retrain(retraining: Retraining, *, say: Say) -> CandidateJudgement:
    """Return the judgement of the candidate.

    Raises ``DataInvalid``, ``ConfigInvalid`` or ``CheckpointMismatch`` if reading or training
    fails. A candidate that cannot be judged is no error: the judgement has a reason.
    """
    folder, running = retraining.folder, checkpoints.load(retraining.running)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / CANDIDATE, ignore_errors=True)
    remove_temporary_files(folder)  # of a training that was killed
    results: dict[str, Any] = {}
    reason = ""
    try:
        _train_and_judge(retraining, running, results, say)
    except _NotJudged as error:
        reason = str(error)
    finally:
        remove_temporary_files(folder)
    return CandidateJudgement(
        RetrainOutcome.SKIPPED, reason, running_sha256=running.sha256, **results
    )


def _train_and_judge(
    retraining: Retraining, running: checkpoints.Checkpoint, results: dict[str, Any], say: Say
) -> None:
    """Write what is found about a candidate into *results*; raise ``_NotJudged`` without one."""
    with Reader.open(retraining.database) as reader:
        run = reader.run(retraining.run_id)
        paths = [*_recorded_bars(reader, run, retraining), *retraining.data]
    given = [] if retraining.candidate is None else [checkpoints.read_card(retraining.candidate)]
    for card in (running.card, *given):
        if symbol := other_of(card):
            raise ConfigInvalid(
                f"A model that reads another symbol, {symbol}, is not retrained in service; train "
                "one by `tracepaper train`, and start the run with it."
            )
    times = _times(paths, run, retraining.until_ms)
    last_ms = [int(opened_ms[-1]) for opened_ms in times.values() if len(opened_ms)]
    until_ms = max(last_ms) + run.interval_ms if last_ms else 0
    from_ms = max(until_ms - retraining.judge_ms, split_of(running.card).calibration_until_ms)
    results |= {"from_ms": from_ms, "until_ms": until_ms}
    _require_enough(retraining, times, from_ms, until_ms)
    folder = retraining.candidate
    if folder is None:
        folder = retraining.folder / CANDIDATE
        say(f"Training on {len(paths)} series until {iso(from_ms)}.")
        _train(retraining, paths, times, from_ms)
    _judge(retraining, run, folder, paths, results, say, from_ms=from_ms, until_ms=until_ms)


# --- the bars


def _recorded_bars(reader: Reader, run: RunRow, retraining: Retraining) -> list[str]:
    """Write the bars of all runs of the same kind and interval; return a file for each symbol.

    If several runs have a bar, the first run's is used, since decisions were made on it.
    """
    runs = [other for name in reader.run_ids() if (other := reader.run(name)).kind is run.kind]
    runs = [other for other in runs if other.interval_ms == run.interval_ms]
    series, until_ms = [], retraining.until_ms
    for item in run.instruments:
        lines: Lines = {}
        for other in runs:
            # Each run's bars are in the units of its own instrument.
            for instrument in (each for each in other.instruments if each.id == item.id):
                bars = reader.bars(other.run_id, item.id)
                closed = (bar for bar in bars if until_ms is None or bar.close_time_ms <= until_ms)
                lines = lines_of(instrument, closed) | lines
        if lines:
            path = retraining.folder / BARS / file_name(item, run.interval_ms)
            rows = [lines[time] for time in sorted(lines)]
            if any(row.endswith(",\n") for row in rows):  # if a bar has no turnover, drop all
                rows = [row.rpartition(",")[0] + ",\n" for row in rows]
            write_lines(path, rows)
            series.append(f"{item.symbol}={path}")
    return series


def _times(paths: Sequence[str], run: RunRow, until_ms: int | None) -> dict[str, Times]:
    """Return the opening times of the bars of each of the run's symbols, in order."""
    times = {item.symbol: np.empty(0, dtype=np.int64) for item in run.instruments}
    if not paths:
        return times
    for candles in read_files(paths, (run.interval_ms,)).candles[run.interval_ms]:
        opened_ms = candles.open_time_ms
        if until_ms is not None:
            opened_ms = opened_ms[candles.closes_ms <= until_ms]
        if candles.symbol in times:
            times[candles.symbol] = np.union1d(times[candles.symbol], opened_ms)
    return times


def _require_enough(
    retraining: Retraining, times: Mapping[str, Times], from_ms: int, until_ms: int
) -> None:
    """Raise ``_NotJudged`` if there are too few bars to train and judge a model."""
    for symbol, opened_ms in times.items():
        before = int((opened_ms < from_ms).sum())
        if before < retraining.min_bars:
            raise _NotJudged(
                f"{symbol} has {before:,} bars before the judged time and retrain.min_bars is "
                f"{retraining.min_bars:,}; wait, or name a file in retrain.data"
            )
    days = max((until_ms - from_ms) / DAY_MS, 0)
    if days < retraining.min_days:
        raise _NotJudged(
            f"the running model was trained on data until {iso(from_ms)}, so {days:.1f} days are "
            f"untouched, and retrain.min_days is {retraining.min_days}; wait"
        )


# --- the candidate


def _train(
    retraining: Retraining, paths: Sequence[str], times: Mapping[str, Times], from_ms: int
) -> None:
    """Train the candidate on the bars before the judged time, as ``tracepaper train`` does."""
    opened_ms = np.sort(np.concatenate(list(times.values())))
    before = opened_ms[opened_ms < from_ms]
    train_until, validate_until = (int(before[int(share * len(before))]) for share in SHARES)
    path = retraining.recipe or retraining.running / checkpoints.CARD_NAME
    document = over(
        as_recipe(read_recipe(path)),
        {
            "split": {
                "train_until": iso(train_until),
                "validation_until": iso(validate_until),
                "calibration_until": iso(from_ms),
            },
            "training": {"threads": retraining.threads},
        },
    )
    recipe = recipe_of(document)
    recipe.check(f"The recipe {path}")
    request = DataRequest(paths)
    with FitView(recipe) as view:
        folder, now_ms = retraining.folder / CANDIDATE, SystemClock().wall_ms()
        run = FitRun(folder, created_ms=now_ms, observe=view.observe, say=view.say)
        train_seeds([recipe], request, run)


# --- the judgement


def _judge(
    retraining: Retraining,
    run: RunRow,
    folder: Path,
    paths: Sequence[str],
    results: dict[str, Any],
    say: Say,
    *,
    from_ms: int,
    until_ms: int,
) -> None:
    """Compare the candidate in *folder* with the running model from *from_ms* to *until_ms*."""
    config, checkpoint = restore(run.config), checkpoints.load(folder)
    horizon, split = config.gate.horizon, split_of(checkpoint.card)
    recipe = recipe_of(checkpoint.card).hash
    results |= {"candidate": str(folder), "candidate_sha256": checkpoint.sha256}
    results |= {"recipe": recipe, "horizon": horizon}
    if split.calibration_until_ms > from_ms:
        raise _NotJudged(
            f"the candidate was trained on data until {iso(split.calibration_until_ms)}, inside "
            "the judged time; name an earlier one, or train one"
        )
    models = _candidate_and_running(config, folder, retraining.running)
    say("Judging both models on untouched time.")
    material = Dataset.read(
        paths,
        lambda _: replace(split, calibration_until_ms=from_ms, test_until_ms=until_ms),
        (horizon,),
        checkpoint.card["features"]["schema_id"],
        intervals=(run.interval_ms,),
        stored=unfitted(),
    )
    candidate, before = (_forecasts(model, material) for model in models)
    both = candidate.join(before, _RUNNING)
    shared = np.isfinite(both.value("variance", _RUNNING))
    days = len(np.unique(both.day[shared]))
    results |= {"bars": int(shared.sum()), "days": days}
    if days < retraining.min_days:
        raise _NotJudged(
            f"both models forecast bars on {days} days, and retrain.min_days is "
            f"{retraining.min_days}; wait"
        )
    if retraining.candidate is not None:  # ``train_seeds`` counts the use of a trained one
        symbols = tuple(item.symbol for item in run.instruments)
        use = HoldoutUse(recipe, checkpoint.id, symbols, from_ms, until_ms)
        if warning := count_use(uses_path(folder), use)[1]:
            say(warning)
    difference = compare(both, LOSSES["qlike"], others=(_RUNNING,))[_RUNNING]
    p = one_sided(difference.value, difference.p)
    results |= {"difference": difference.value, "error": difference.standard_error, "p": p}


def _candidate_and_running(
    config: Config, folder: Path, running: Path
) -> tuple[Forecaster, Forecaster]:
    """Return both models; raise ``_NotJudged`` if the candidate cannot replace the running one."""
    before = forecaster_of(running, config, mode="scan")
    try:
        candidate = forecaster_of(folder, config, mode="scan")
        for name, get in _KEPT.items():
            if (trained := get(candidate)) != (required := get(before)):
                raise _NotJudged(
                    f"the candidate's {name} {trained} differs from the running model's {required};"
                    " use a recipe that keeps it, or start a new run with the candidate in [model] "
                    "checkpoint"
                )
        preflight_engine(config, candidate)
    except (ConfigInvalid, CheckpointMismatch) as error:
        raise _NotJudged(f"the candidate cannot run: {str(error).rstrip('.')}") from None
    if "volatility" not in candidate.measures:
        raise _NotJudged("the models forecast no volatility, which the judgement compares")
    return candidate, before


def _forecasts(model: Forecaster, material: Dataset) -> Forecasts:
    """Return the variances that *model* forecasts in the judged time.

    Raises ``DataInvalid`` without a forecast.
    """
    answers = answers_of(model, material, {"volatility"})
    if not answers:
        raise DataInvalid(
            f"No bar of the judged time has {model.context} bars before it without a gap; fetch "
            "the missing candles, and name their file in retrain.data."
        )
    return forecasts_of(answers, {}, material.horizons)
