"""``bench assets|orderbook|train|ett``: networks on generated and published data.

It is a test of size: the weights are untrained and the prices drawn, so that nothing of what is
said is worth anything. The measuring is done in a process of its own, whose peak is that of this
work and of the imports that it needs.

In a chunk every labelled bar is a sample of one pass. The naive form runs the same network over
the whole receptive field of each sample and learns from its last row: the same answer, a sample a
pass. Both take steps of the same optimiser; only what a step learns from differs.

The protocol is in ``replay/bench/ett_data.py``: parts of 12, 4 and 4 months, z-scores by the
training part, every test window, errors over all variables. Published figures were taken so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.bench import ett as baselines
from tracepaper.replay.bench.ett_data import (
    DirectModel,
    Task,
    check_step,
    compared,
    errors,
    prepare,
    read_table,
    recursive,
)
from tracepaper.replay.bench.machine import (
    machine_line,
    measure_apart,
    most_resident_mb,
    resident_mb,
)
from tracepaper.replay.bench.replay import tiled
from tracepaper.replay.bench.workloads import BookWorkload, SeveralAssets
from tracepaper.replay.learning.fit import (
    FitOptions,
    Progress,
    heads_fit,
    use_threads,
)
from tracepaper.replay.learning.samples import (
    Samples,
    samples_of,
)
from tracepaper.replay.learning.splits import (
    Part,
    Split,
    segments_of,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require
from tracepaper.strategies.features.rows import Columns, compute, schema
from tracepaper.strategies.networks.architecture import Network, network_kinds
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.order_book import SIDES, Books, tokens_of

REACH_BYTES: Final = 1_200_000_000
_PROGRAM: Final = (
    "from tracepaper.replay.bench.networks import told; told({assets}, {bars}, {seed})"
)


def measure_assets(assets: int = 100, bars: int = 2_048, *, seed: int = 0) -> dict[str, Any]:
    """Return seconds and peak memory of *assets* x *bars* tokens, every asset explained.

    One thread; the peak is that of a fresh process, its imports included, and beside it stands
    what the imports alone hold. Raises ``ConfigInvalid`` where that process fails.
    """
    program = _PROGRAM.format(assets=assets, bars=bars, seed=seed)
    return measure_apart(program, f"{assets:,} assets of {bars:,} bars")


def told(assets: int, bars: int, seed: int) -> None:
    """Print the figures of ``measure`` as JSON; in the process that is measured."""
    use_threads(1)
    imports = round(most_resident_mb() * 1e6)
    work = SeveralAssets(_drawn(assets, bars, seed), seed=seed)
    forward, _ = _timed(work.forward)
    explained, missed = _timed(work.explained)
    figures = {
        "tokens": assets * bars,
        "network": f"crossasset, {work.config.layers} layers, window {bars}, width "
        f"{work.config.dim}",
        "forward_minutes": forward / 60.0,
        "forward_explained_minutes": explained / 60.0,
        "peak_bytes": round(most_resident_mb() * 1e6),
        "imports_bytes": imports,
        "reach_bytes": REACH_BYTES,
        "largest_row_error": missed,
    }
    sys.stdout.write(json.dumps(figures))


def _drawn(assets: int, bars: int, seed: int) -> NDArray[np.float32]:
    """Return feature rows [asset, bar, feature] of walks that mean nothing."""
    rows, generator = schema("v1"), np.random.default_rng(seed)
    count = bars + rows.lookback - 1
    found = np.empty((assets, bars, len(rows.names)), dtype=np.float32)
    for asset in range(assets):
        close = 100.0 * np.exp(np.cumsum(generator.normal(0.0, 1e-3, count)))
        times = 60_000 * np.arange(count, dtype=np.int64)
        volume = generator.uniform(1.0, 2.0, count)
        drawn = Columns(times, close, close * 1.001, close * 0.999, close, volume, 60_000)
        found[asset] = compute(rows, drawn).values[-bars:]
    return found


def _timed(work: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of wall time that *work* took, and what it returned."""
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


WARM_BOOKS: Final = 32
_FIRST_MS: Final = 1_735_689_600_000
_EVERY_MS: Final = 1_000


def generated(count: int, levels: int, seed: int = 0) -> Books:
    """Return *count* books of *levels* a side around a seeded walk of the mid."""
    rng = np.random.default_rng(seed)
    bid = 650_000 + np.cumsum(rng.integers(-2, 3, count))
    ask = bid + rng.integers(1, 3, count)
    away = np.arange(levels)
    price = np.stack((bid[:, None] - away, ask[:, None] + away), axis=1)
    size = rng.integers(1, 100_000, (count, len(SIDES), levels))
    seen_ms = _FIRST_MS + _EVERY_MS * np.arange(count, dtype=np.int64)
    age_ms = rng.integers(0, 100, (count,))
    return Books(seen_ms, seen_ms - age_ms, price, size)


def measure_order_book(books: int, levels: int, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure what *books* of *levels* a side cost, beyond what the process held before them.

    The books are generated and the network is untrained: it is a test of size. Memory is the most
    that the process ever held less what it held before, so it is never told too small.
    """
    tell(f"{len(SIDES) * levels * books:,} tokens of generated books, untrained")
    workload = BookWorkload(levels, books)
    workload.look(tokens_of(generated(WARM_BOOKS, levels)))
    before = resident_mb()
    started = time.process_time()
    seen = workload.look(tokens_of(generated(books, levels)))
    seconds = time.process_time() - started
    return {
        "machine": machine_line(),
        "tokens": len(SIDES) * levels * books,
        "memory_mb": most_resident_mb() - before,
        "cpu_s": seconds,
        "map_sums_to": float(seen.weights.double().sum()),
        "l1_error": seen.l1_error,
    }


STEPS: Final = 4
"""Steps that are timed, after one that is not."""

Tell = Callable[[str], None]


class WindowByWindow(FlashNetwork):
    """The same network, asked for the last row of each window alone."""

    @property
    def answers_every_row(self) -> bool:
        """Say no, so that it is trained by single windows."""
        return False


class _EnoughError(Exception):
    """The steps that are timed are done."""


def measure_training(
    bars: int = 20_000,
    *,
    steps: int = STEPS,
    flash: FlashConfig | None = None,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Return bars a CPU second of training, on *bars* bars of the bundled candles.

    *flash* is the network of the comparison, by default the usual one; the kinds of whole windows
    stand beside it by name, as they come.
    """
    use_threads(1)
    config = flash or FlashConfig()
    training = _training(bars, config.horizons)
    options = FitOptions(steps=steps + 2, validate_every=steps + 2)
    tell("training by chunks, every bar a sample")
    chunks = _bars_a_second(FlashNetwork(config), training, options, steps)
    tell("training the same network window by window")
    naive = replace(options, windows=1)
    alone = _bars_a_second(WindowByWindow(config), training, naive, steps)
    return {
        "network": f"flash, {config.layers} layers, window {config.window}, width {config.dim}",
        "rows_of_an_answer": config.receptive_field,
        "chunks_bars_per_cpu_s": chunks,
        "naive_bars_per_cpu_s": alone,
        "times_naive": chunks / alone,
        "whole_windows_bars_per_cpu_s": _others(training, options, steps, tell),
        "machine": machine_line(),
    }


def _others(
    training: Sequence[Samples], options: FitOptions, steps: int, tell: Tell
) -> Mapping[str, float]:
    """Measure bars a CPU second of every kind that learns from single windows."""
    found = {}
    for name, kind in network_kinds().items():
        network = kind.make(kind.read({"horizons": list(training[0].horizons)}))
        if not network.answers_every_row:
            tell(f"training {name}, window {network.config.window}")
            found[name] = _bars_a_second(network, training, options, steps)
    return found


def _training(bars: int, horizons: tuple[int, ...]) -> list[Samples]:
    """Return the samples of so many bundled bars, laid end to end."""
    segments = segments_of(tiled(bars), schema())
    ended = max(int(segment.close_time_ms[-1]) for segment in segments)
    split = Split(ended, ended + 1, ended + 2, embargo_bars=0)
    return samples_of(segments, horizons, split, Part.TRAIN)


def _bars_a_second(
    network: Network, training: Sequence[Samples], options: FitOptions, steps: int
) -> float:
    """Return labelled bars that *steps* steps learnt from, by CPU second, after a first step."""
    marks: list[tuple[float, int]] = []

    def mark(progress: Progress) -> None:
        marks.append((time.process_time(), progress.bars))
        if len(marks) > steps:
            raise _EnoughError  # before the validation, which is no training

    with suppress(_EnoughError):
        heads_fit(network, training, training, options).run(mark)
    (begun, before), (ended, after) = marks[0], marks[-1]
    return (after - before) / (ended - begun)


FITTED: Final = ("flash", "informer", "lstm")
NETWORKS: Final = (*FITTED, "ridge", "tree")


class Measured(NamedTuple):
    """Test errors of one answer, and what it cost."""

    mse: float
    mae: float
    minutes: float
    cpu_minutes: float
    model: DirectModel


def measure_ett(
    path: Path,
    network: str,
    *,
    horizon: int,
    univariate: bool = False,
    seed: int = 0,
    epochs: int | None = None,
    step: int = 0,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return test errors of *network*, of the last day repeated and of ridge on one file.

    *epochs* passes over the training part replace those of the network's recipe. With *step* the
    same network is also fitted to that many rows, and rolled on over its own forecasts.
    Raises ``ConfigInvalid`` for an unknown network, ``DataInvalid`` for a file of another form.
    """
    if network not in NETWORKS:
        raise ConfigInvalid(f"There is no network {network!r}; use {', '.join(NETWORKS)}.")
    require("lightgbm", "--network tree", network == "tree")
    table = read_table(path)
    task = prepare(path, table, horizon=horizon, univariate=univariate)
    if step:
        check_step(task, step)
    naive = _measured(task, lambda: baselines.seasonal(task))
    ridge = _measured(task, lambda: baselines.ridge(task))
    tell(f"seasonal naive MSE {naive.mse:.3f}, ridge MSE {ridge.mse:.3f}")

    made: Mapping[str, Callable[[Task], DirectModel]] = {
        "ridge": baselines.ridge,
        "tree": partial(baselines.tree, seed=seed),
    }
    fit = made.get(network) or partial(
        _fitted, network=network, seed=seed, epochs=epochs, tell=tell
    )
    own = ridge if fit is baselines.ridge else _measured(task, lambda: fit(task))
    rolled = {}
    if step:
        rolled = {"recursive": _rolled(task, own.model, fit(replace(task, horizon=step)), step)}
    return {
        "network": network,
        "horizon": horizon,
        "variables": task.values.shape[1],
        "test_windows": len(task.origins(task.test, 0)),
        "seed": seed,
        "mse": own.mse,
        "mae": own.mae,
        "minutes": own.minutes,
        "cpu_minutes": own.cpu_minutes,
        "parameters": own.model.parameters,
        "chosen": own.model.chosen,
        "seasonal_naive": {"mse": naive.mse, "mae": naive.mae},
        "ridge": {"mse": ridge.mse, "mae": ridge.mae, "chosen": ridge.model.chosen},
        "mse_over_ridge": own.mse / ridge.mse,
        "verdict": _verdict(network, own, ridge),
        **rolled,
        "machine": machine_line(),
    }


def _fitted(
    task: Task, network: str, seed: int, epochs: int | None, tell: Callable[[str], None]
) -> DirectModel:
    def observe(epoch: baselines.Epoch) -> None:
        tell(
            f"network {epoch.member}, epoch {epoch.number} of at most {epoch.epochs}: "
            f"MSE in training {epoch.training_mse:.4f}, in validation {epoch.validation_mse:.4f}"
        )

    recipe = baselines.recipes(task, seed)[network]
    if epochs is not None:
        recipe = recipe._replace(options=replace(recipe.options, epochs=epochs))
    return baselines.fit(task, recipe, observe)


def _measured(task: Task, made: Callable[[], DirectModel]) -> Measured:
    """Return the errors over every test window of what *made* returns, and what both took."""
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = made()
    found = errors(task, task.origins(task.test, 0), fitted.answer)
    return Measured(
        found.mse,
        found.mae,
        (time.perf_counter() - wall) / 60,
        (time.process_time() - cpu) / 60,
        fitted,
    )


def _rolled(task: Task, direct: DirectModel, short: DirectModel, step: int) -> dict[str, Any]:
    """Return the errors of *short*, rolled on in steps of *step* rows, beside those of *direct*."""
    answer, origins = recursive(short, task, step), task.origins(task.test, 0)
    rows = compared(task, origins, answer, direct.answer, step)
    [whole] = compared(task, origins, answer, direct.answer, task.horizon)
    verdict = "level with the direct forecast"
    if whole.error is not None and abs(whole.difference) > 2 * whole.error:
        verdict = f"{'better' if whole.difference < 0 else 'WORSE'} than the direct forecast"
    error = "" if whole.error is None else f" ± {whole.error:.4f}"
    return {
        "step": step,
        "chosen": short.chosen,
        "mse": whole.first,
        "verdict": f"recursive is {verdict} ({whole.difference:+.4f}{error} MSE)",
        "by_rows_ahead": {
            f"{at * step + 1} to {(at + 1) * step}": {
                "mse": one.first,
                "direct_mse": one.second,
                "difference": one.difference,
                "error": one.error,
            }
            for at, one in enumerate(rows)
        },
    }


def _verdict(network: str, own: Measured, ridge: Measured) -> str:
    if network == "ridge":
        return "ridge itself"
    side = "not above" if own.mse <= ridge.mse else "ABOVE"
    return f"{network} is {side} ridge ({own.mse:.4f} and {ridge.mse:.4f})"
