"""``bench train``: bars learnt from a second, chunks beside single windows at equal network.

In a chunk every labelled bar is a sample of one pass. The naive form runs the same network over
the whole receptive field of each sample and learns from its last row: the same answer, a sample a
pass. Both take steps of the same optimiser; only what a step learns from differs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.bench.replay import tiled
from tracepaper.replay.training.fit import Fit, FitOptions, Progress
from tracepaper.replay.training.pipeline import use_threads
from tracepaper.replay.training.samples import Samples, samples_of
from tracepaper.replay.training.series import Part, Split, segments_of
from tracepaper.strategies.features import schema
from tracepaper.strategies.networks.architecture import Network, network_kinds
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

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


def measure(
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
    """Return bars a CPU second of every kind that learns from single windows, by its name."""
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

    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(network, training, training, options, folder=Path(folder), about={})
        with suppress(_EnoughError):
            fit.run(mark)
    (begun, before), (ended, after) = marks[0], marks[-1]
    return (after - before) / (ended - begun)
