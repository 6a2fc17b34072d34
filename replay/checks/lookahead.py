"""``lookahead``: changes the future and looks for decisions that move.

No decision may move where later bars are absent or other, where the process has seen
nothing before, where its clocks jump or where an instrument is alone; and a user's class may open
nothing but its declared files. What peeks is named with the bar.

The rules are docs/strategies.md, U8 to U11.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, own_classes
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import Difference, LookaheadFinding
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.isolation import (
    ANEW,
    Accesses,
    FreshProcesses,
    Overdue,
    Setup,
    Whole,
    derive_whole,
    given_of,
    packed,
    step_through,
)
from tracepaper.replay.checks.perturbations import (
    HASH_SEEDS,
    PRICE_FACTOR,
    DerivedStep,
    FutureProbe,
    Surroundings,
    first_false_frame,
    largest_table,
    link,
    moved_by,
    replaced_covariates,
    source_of,
    weeks_later,
)
from tracepaper.replay.checks.recursive import difference_of, same_judgement, same_signal
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, StrategyFailed, TracepaperError
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import CloseStart
from tracepaper.strategies.units import WEEK_MS, iso

LOOKS: Final = 4
"""Equal runs, each in a process of its own, before what moved is believed to be no chance."""
LOOKED_BEYOND: Final = 16
"""Steps after the first that moved: one coin may fall alike in all of them, not so many."""
GRACE_S: Final = 10.0
"""An answer under way when the time is over is waited for this long, wall seconds."""
MODEL: Final = "tracepaper.strategies.forecasters.build"
"""What a check of a model loads once rather than in every fresh process."""

TO_COME: Final = "it depends on bars that are still to come"
ROWS_TO_COME: Final = "it depends on bars, or rows of covariates, that are still to come"
FALSE_FRAME: Final = (
    "a bar of a higher frame was handed on that had not closed, or is not what its bars add up to"
)
ON_ORDER: Final = (
    "it depends on the order of the symbols within a close: what they share changes while they are "
    "decided; let one PortfolioStrategy decide for all"
)
ON_EARLIER_RUNS: Final = "it remembers earlier runs of its process"
SURROUNDED: Final = "the environment, the working folder and the hashes of texts"
ON_HASHES: Final = (
    "it depends on the hash of a text, or on the order of a set of texts, which Python draws anew "
    "in each process; sort them"
)
ON_ENVIRONMENT: Final = (
    "it depends on the environment{}; pass what cannot tell with --allow-reading"
)
ON_FOLDER: Final = "it depends on the working folder"
ON_CLOCK: Final = "it depends on the machine's clock"
UNEQUAL: Final = (
    "it cannot be repeated, two equal runs differ: it draws at random, or by its process, or what "
    "it reads changes"
)


@dataclass(frozen=True)
class Limits:
    """How much a check looks at: corrupted or cut futures, and seconds in all."""

    probes: int = 12
    seconds: float = 300.0
    seed: int = 0


def lookahead(
    config: Config,
    data: MarketData,
    fresh: FreshProcesses,
    limits: Limits | None = None,
    *,
    mode: str = "scan",
    allow: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> LookaheadFinding:
    """Look for whatever a decision over *data* depends on beside its own past bars.

    *allow* names files, folders, addresses or programs that the class may open. Raises
    ``ConfigInvalid`` where the candles are too few to decide anything.
    """
    if not data.frames:
        # A cut future changes them no more.
        config, shortened = fit_windows(config, data.span_ms)
        for sentence in shortened:
            report(f"Warning: {sentence}.")
    return _Check(config, data, fresh, limits or Limits(), mode, allow, report).run()


# ---------------------------------------------------------------- probes as rows


def same_step(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether two steps and their columns are equal bit for bit."""
    return packed(mine) == packed(other)


class ProbeTrial(NamedTuple):
    """One process that derives steps again, of which none may differ from the *expected* ones."""

    expected: Sequence[DerivedStep]
    subject: Setup | MarketData  # steps the inputs of those through, or replays other candles
    because: str  # what a step depends on that moves; {} stands for variables
    same: Callable[[DerivedStep, DerivedStep], bool] = same_step
    config: Config | None = None  # of other candles, where it is another
    until_ms: int | None = None  # of other candles: the last open time that is compared
    hash_seed: int | None = None
    is_blind: bool = False  # handed its inputs one at a time
    has_past: bool = False  # after the same was stepped through in that process before


class LookaheadProbe(NamedTuple):
    """One way in which a decision can depend on what it should not, and how it shows."""

    name: str
    trials: Callable[[_Check], Iterator[ProbeTrial | Difference]]
    is_refused: bool = True  # else a difference is only told, as what decisions depend on


def _without_later(check: _Check) -> Iterator[ProbeTrial]:
    """Hand on the events one at a time, so that no later bar exists before a decision."""
    yield ProbeTrial(check.steps, check.setup(), TO_COME, is_blind=True)


def _reordered(check: _Check) -> Iterator[ProbeTrial]:
    """Hand on the bars of each close in the opposite order of their symbols."""
    if len(check.instruments) > 1:  # two have an order
        reverse = replace(check.replayed, candles=check.replayed.candles[::-1])
        yield ProbeTrial(check.steps, reverse, ON_ORDER, same_judgement)


def _again(check: _Check) -> Iterator[ProbeTrial]:
    yield ProbeTrial(check.steps, check.setup(), ON_EARLIER_RUNS, has_past=True)


def _surrounded(check: _Check) -> Iterator[ProbeTrial]:
    """Repeat under other hash seeds, without environment variables, then in another folder too.

    Only for a user's class: ours read none of these. Where something was opened that is not
    allowed, that is the finding.
    """
    if not check.is_custom or not all(map(check.is_allowed, check.opened)):
        return
    for seed in HASH_SEEDS:
        yield ProbeTrial(check.steps, check.setup(), ON_HASHES, hash_seed=seed)
    with tempfile.TemporaryDirectory(prefix="tracepaper-elsewhere-") as folder:
        link(check.allow, Path(folder))
        for where, because in ((None, ON_ENVIRONMENT), (folder, ON_FOLDER)):
            around = Surroundings(frozenset(check.allow), where)
            yield ProbeTrial(check.steps, check.setup(around=around), because)


def _jumping(check: _Check) -> Iterator[ProbeTrial]:
    """Repeat in a process whose clocks jump at each reading."""
    yield ProbeTrial(check.steps, check.setup(jumping=True), ON_CLOCK)


def _alone(check: _Check) -> Iterator[ProbeTrial]:
    """Step each of several instruments through by itself; a portfolio decides for all."""
    if len(check.instruments) < 2 or check.is_portfolio:  # two can share
        return
    for item in check.instruments:
        mine = [
            each
            for each in check.steps
            if getattr(each.step.event, "instrument", item.id) == item.id
            and not isinstance(each.step.event, CloseStart)
        ]
        because = (
            f"{item.id} is decided otherwise without the other instruments: its objects share "
            "something; let one PortfolioStrategy decide for all"
        )
        yield ProbeTrial(mine, check.setup(instruments=(item,)), because, same_judgement)


def _futures(check: _Check) -> Iterator[ProbeTrial]:
    """Corrupt or cut off what follows bars that are spread over the whole file."""
    config, data = check.config, check.data
    because = TO_COME if config.model.covariates is None else ROWS_TO_COME
    first_ms, _ = data.bounds
    probes = _spread(check.replayed, check.limits, check.whole.warmup)
    check.finding.planned = len(probes)
    for number, probe in enumerate(probes):
        check.report(f"lookahead: future {number + 1} of {len(probes)}")
        base = check.steps
        if probe.from_ms > first_ms:
            base = check.derived(probe.window(data)).steps
        with probe.changed(config, data) as (changed, future):
            yield ProbeTrial(base, future, because, config=changed, until_ms=probe.at_ms)


def _later(check: _Check) -> Iterator[ProbeTrial]:
    """Move the whole series in time; what then differs depends on the date."""
    with replaced_covariates(check.config, moved_by(check.weeks * WEEK_MS)) as config:
        moved = check.replayed.shifted(check.weeks)
        yield ProbeTrial(check.steps, moved, "on the date", same_judgement, config)


def _dearer(check: _Check) -> Iterator[ProbeTrial]:
    """Multiply all prices; whose signal then differs depends on the absolute price."""
    moved = check.replayed.scaled(PRICE_FACTOR)
    yield ProbeTrial(check.steps, moved, "on the absolute price", same_signal)


def _frames(check: _Check) -> Iterator[Difference]:
    """Compare the bars of higher timeframes with the closed ones of the whole file."""
    compared, difference = first_false_frame(check.replayed, check.instruments, check.steps)
    check.finding.compared += compared
    if difference is not None:
        check.finding.because = FALSE_FRAME
        yield difference


PROBES: Final = (
    LookaheadProbe("bars without a later bar in the process", _without_later),
    LookaheadProbe("bars of higher frames", _frames),
    LookaheadProbe("the symbols in another order", _reordered),
    LookaheadProbe("a second run in one process", _again),
    LookaheadProbe(SURROUNDED, _surrounded),
    LookaheadProbe("jumping clocks", _jumping),
    LookaheadProbe("each instrument alone", _alone),
    LookaheadProbe("corrupted and cut futures", _futures),
    LookaheadProbe("the series {weeks} weeks later", _later, is_refused=False),
    LookaheadProbe(f"prices times {PRICE_FACTOR}", _dearer, is_refused=False),
)
"""In the order in which they are made; the first that finds something to refuse is the last."""


# ---------------------------------------------------------------- the runner


class _TimeOver(Exception):
    """The seconds of a check are over."""


class MovedStep(NamedTuple):
    """The first step that a trial derives otherwise, or why it derives none."""

    mine: DerivedStep
    other: DerivedStep | str
    unset: Sequence[str] = ()  # variables that were asked for in an empty environment

    @property
    def difference(self) -> Difference:
        """The first field that differs."""
        if isinstance(self.other, str):
            return Difference.of(self.mine.step, "the step", "made", f"refused: {self.other}")
        return difference_of(self.mine, self.other)


class _Check:
    """One ``lookahead``: each possible leak is probed in turn."""

    def __init__(
        self,
        config: Config,
        data: MarketData,
        fresh: FreshProcesses,
        limits: Limits,
        mode: str,
        allow: Sequence[str],
        report: Callable[[str], None],
    ) -> None:
        self.config, self.allow, self._fresh = config, allow, fresh
        self.data = self.replayed = data  # of these the candles that the time sufficed for
        # What a user's model says is derived again bar by bar, so that all of it is bit-equal.
        self._mode = "step" if config.model.own_class else mode
        self.weeks = weeks_later(config.market.interval_ms)
        self.is_custom = bool(own_classes(config))
        self.limits, self.report = limits, report
        self._clock = SystemClock()
        self._until_s = self._clock.network_s() + limits.seconds
        fresh.limit_waits(lambda: max(0.0, self._until_s - self._clock.network_s()) + GRACE_S)
        self.finding = LookaheadFinding("lookahead", planned=limits.probes)
        self.opened: dict[ExternalInput, None] = {}
        self._native: set[str] = set()

    def run(self) -> LookaheadFinding:
        """Do all of it, or as much as the time allows."""
        finding = self.finding
        try:
            self.whole = self._replay_whole()
        except Overdue:
            raise StrategyFailed(
                f"The strategy did not get through a replay within {self.limits.seconds:g} s; "
                "see where it waits, or give more --seconds."
            ) from None
        self.steps, self.is_portfolio = self.whole.steps, self.whole.is_portfolio
        self.instruments = self.whole.setup.instruments
        for probe in PROBES:
            if finding.differences:
                break
            name = probe.name.format(weeks=self.weeks)
            self.report(f"lookahead: {name}")
            try:
                self._check_time()
                self._probe(probe)
            except (_TimeOver, Overdue):
                finding.unfinished.append(name)
                finding.unproved.append(f"{name}: not probed to the end, the time was over")
        self._conclude()
        return finding

    def _replay_whole(self) -> Whole:
        """Replay everything, for at most a sixth of the time; all probes are compared with it."""
        finding = self.finding
        total = sum(map(len, self.data.candles))
        whole = self.derived(self.data, within_s=self.limits.seconds / 6)
        bars = [bar for derived_step in whole.steps if (bar := derived_step.bar)]
        finding.given, finding.bars, finding.warmup = total, len(bars), whole.warmup
        if len(bars) <= whole.warmup * len(whole.setup.instruments) and not whole.is_cut:
            # Nothing would move, for nothing would be decided.
            raise ConfigInvalid(
                f"The strategy is warm after {whole.warmup:,} bars, and {len(bars):,} are looked "
                "at; give more."
            )
        if whole.is_cut:
            self.replayed = self.data.opening(0, bars[-1].open_time_ms - 1)
            finding.unfinished.append("a replay of all bars")
            finding.unproved.append(
                f"the last {total - len(bars):,} of {total:,} bars: the time did not suffice"
            )
        return whole

    def _probe(self, probe: LookaheadProbe) -> None:
        """Make the trials of *probe* until one of them moves a step."""
        for trial in probe.trials(self):
            if isinstance(trial, Difference):
                self.finding.differences.append(trial)
                return
            self._check_time()
            try:
                moved = self.moved(trial)
            except TracepaperError as error:
                if probe.is_refused:
                    raise
                self.finding.unproved.append(f"whether it depends {trial.because}: {error}")
                return
            if moved is None:
                continue
            difference = moved.difference
            if not probe.is_refused:
                at = f"{difference.instrument} bar {iso(difference.open_time_ms)}"
                self.finding.depends.append(f"it depends {trial.because}, first at {at}")
                return
            self.finding.differences.append(difference)
            names = [name for name in moved.unset if name in os.environ]
            because = trial.because.format(f", {', '.join(names)}" if names else "")
            self.finding.because = self._unless_by_chance(moved.mine, because)
            return

    def moved(self, trial: ProbeTrial) -> MovedStep | None:
        """Return the first step of *trial* that differs; None where all are as expected."""
        if isinstance(trial.subject, Setup):
            return self._moved_inputs(trial, trial.subject)
        whole, until_ms = self.derived(trial.subject, trial.config), trial.until_ms
        self.finding.probes += until_ms is not None
        moved, compared = first_moved(trial, whole.steps)
        self.finding.compared += compared
        return moved

    def _moved_inputs(self, trial: ProbeTrial, setup: Setup) -> MovedStep | None:
        """Step the inputs of the expected steps through an engine in another process."""
        seed, inputs = trial.hash_seed, list(given_of(trial.expected))
        fresh = self._fresh if seed is None else self._fresh.under(seed)
        batches = [[each] for each in inputs] if trial.is_blind else [inputs]
        moved, taken = None, iter(trial.expected)
        with fresh.child(step_through, setup) as child:
            if trial.has_past:
                child.ask(inputs)
                child.send(ANEW)
            for count, batch in enumerate(batches):
                if count % 200 == 0:
                    self._check_time()
                mine = list(islice(taken, sum(len(predictions) for _, predictions in batch)))
                try:
                    steps = child.ask(batch)
                except StrategyFailed as error:
                    return MovedStep(next((each for each in mine if each.bar), mine[0]), str(error))
                for place, (each, other) in enumerate(zip(mine, steps, strict=True)):
                    self.finding.compared += 1
                    if packed(each) != other and not trial.same(each, step := child.ask(place)):
                        moved = MovedStep(each, step)
                        break
                if moved is not None:
                    break
                self.finding.without_later += trial.is_blind * sum(bool(each.bar) for each in mine)
            accesses: Accesses = child.ask(None)
        self._note_accesses(accesses)
        return moved and moved._replace(unset=accesses.unset)

    def derived(
        self, data: MarketData, config: Config | None = None, *, within_s: float | None = None
    ) -> Whole:
        """Return the replay of *data* by a fresh process, or what is done of it *within_s*."""
        left_s = self._until_s - self._clock.network_s() if within_s is None else within_s
        given = config or self.config, data, self._mode, left_s
        with self._fresh.child(derive_whole, *given) as child:
            whole: Whole = child.receive()
        self._note_accesses(whole.accesses)
        if whole.is_cut and within_s is None:
            raise _TimeOver
        return whole

    def setup(self, **changed: Any) -> Setup:  # noqa: ANN401 - fields of a Setup
        """Return the engine of the whole replay, *changed*."""
        compiled = self.whole.accesses.compiled
        return replace(self.whole.setup, compiled=compiled, **changed)

    def is_allowed(self, item: ExternalInput) -> bool:
        """Return whether the class may open *item*."""
        folders = [Path(name).resolve() for name in self.allow]
        inside = any(Path(item.name).is_relative_to(folder) for folder in folders)
        return item.name in self.allow or (item.what in {"file", "table"} and inside)

    def _check_time(self) -> None:
        if self._clock.network_s() > self._until_s:
            raise _TimeOver

    def _note_accesses(self, accesses: Accesses) -> None:
        self.opened.update(dict.fromkeys(accesses.opened))
        self._native.update(accesses.native)

    def _unless_by_chance(self, mine: DerivedStep, because: str) -> str:
        """Return *because*, unless two equal runs differ as well, and it is no function of bars."""
        self.report("lookahead: the same once more, nothing withheld")
        given = list(given_of(self.steps))[: mine.step.sequence + LOOKED_BEYOND]

        def look() -> list[bytes] | None:
            with self._fresh.child(step_through, self.setup()) as child:
                try:
                    steps: list[bytes] = child.ask(given)
                except (TracepaperError, Overdue):
                    return None
            return steps

        first = look()
        if all(look() == first for _ in range(LOOKS - 1)):
            return because
        return f"{because}, or {UNEQUAL}" if because == ON_CLOCK else UNEQUAL

    # ------------------------------------------------------------ what comes of it

    def _conclude(self) -> None:
        finding = self.finding
        self._note_tables()
        for item in self.opened:
            (finding.allowed if self.is_allowed(item) else finding.opened).append(item)
        if self.is_custom:
            signals = [each.signal for each in self.steps if each.signal is not None]
            if signals and all(
                isinstance(signal, Signal) and signal.action is Action.HOLD for signal in signals
            ):
                finding.unproved.append(
                    f"anything of what it would do: it signalled HOLD at all {len(signals):,} bars"
                )
            if finding.without_later < finding.bars and not finding.differences:
                left = finding.bars - finding.without_later
                finding.unproved.append(f"{left:,} bars that were not decided blindly")
            if finding.allowed:
                finding.unproved.append(
                    "whether what it was allowed to open tells the future: "
                    + ", ".join(item.name for item in finding.allowed)
                )
            if declared := self.whole.accesses.declared:
                finding.unproved.append(
                    f"whether its declared files tell the future: {', '.join(declared)}"
                )
            if self._native:
                finding.unproved.append(
                    f"what {', '.join(sorted(self._native))} opened: native code is not heard"
                )

    def _note_tables(self) -> None:
        """Take a table in a source of the class for a file that it read."""
        for module in self.whole.accesses.modules:
            if (source := source_of(module)) is None:
                self.finding.unproved.append(f"what {module} holds: it is compiled")
            elif (values := largest_table(source)) > 0:
                self.opened[ExternalInput("table", str(source))] = None
                self.report(f"lookahead: a table of {values:,} values in {source}")


def _spread(data: MarketData, limits: Limits, warmup: int) -> list[FutureProbe]:
    """Return a probe in each of as many equal parts of the file; their order is a seeded one."""
    times = data.opens_ms
    if times.size < 3:  # a past, a probe and a future
        raise DataInvalid(f"{times.size} bars have no future to perturb; give more data.")
    rng = np.random.default_rng(limits.seed)
    first = min(warmup, times.size // 4)
    edges = np.linspace(first, times.size - 1, limits.probes + 1)
    drawn = (
        rng.integers(int(low), max(int(low) + 1, int(high)))
        for low, high in itertools.pairwise(edges)
    )
    places = sorted({int(place) for place in drawn})
    back = max(2_000, 2 * warmup)
    if times.size <= 4 * back:
        back = int(times.size)  # so few bars are derived from the first one on
    starts = [max(0, place - back) for place in places]
    probes = [
        FutureProbe(int(times[start]), int(times[place]), cut=turn % 2 == 1)
        for turn, (start, place) in enumerate(zip(starts, places, strict=True))
    ]
    return [probes[turn] for turn in rng.permutation(len(probes))]


def first_moved(trial: ProbeTrial, steps: Sequence[DerivedStep]) -> tuple[MovedStep | None, int]:
    """Return the first bar of *steps* that is not as *trial* expects, and how many were compared.

    They are aligned by the times of the bars, which may be moved, and by the instruments.
    """
    pairs = zip(*(_by_time(each, trial.until_ms) for each in (trial.expected, steps)), strict=False)
    compared = 0
    for compared, (mine, other) in enumerate(pairs, 1):
        if not trial.same(mine, other):
            return MovedStep(mine, other), compared
    return None, compared


def _by_time(steps: Sequence[DerivedStep], until_ms: int | None) -> list[DerivedStep]:
    """Return the steps of bars that opened until *until_ms* by their times and instruments."""
    bars = [(bar.open_time_ms, bar.instrument, each) for each in steps if (bar := each.bar)]
    bars.sort(key=itemgetter(0, 1))
    return [each for open_ms, _, each in bars if until_ms is None or open_ms <= until_ms]
