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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, own_classes
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import fit_windows, span_of
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import Difference, LookaheadFinding
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.isolation import (
    Accesses,
    Child,
    EngineInput,
    FreshProcesses,
    Overdue,
    Setup,
    Whole,
    derive_probes,
    derive_whole,
    given_of,
    packed,
    step_blindly,
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
from tracepaper.strategies.types.market import Closed
from tracepaper.strategies.units import WEEK_MS, iso

LOOKS: Final = 4
"""Equal runs, each in a process of its own, before what moved is believed to be no chance."""
LOOKED_BEYOND: Final = 16
"""Steps after the first that moved: one coin may fall alike in all of them, not so many."""
GRACE_S: Final = 10.0
"""An answer under way when the time is over is waited for this long, wall seconds."""
MODEL: Final = "tracepaper.strategies.forecasters.build"
"""What a check of a model loads once rather than in every fresh process."""

SURROUNDED: Final = "the environment, the working folder and the hashes of texts"
ON_HASHES: Final = (
    "it depends on the hash of a text, or on the order of a set of texts, which Python draws anew "
    "in each process; sort them"
)
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
        config, shortened = fit_windows(config, span_of(data.candles))
        for sentence in shortened:
            report(f"Warning: {sentence}.")
    return _Check(config, data, fresh, limits or Limits(), mode, report).run(allow)


class _TimeOver(Exception):
    """The seconds of a check are over."""


class _Check:
    """One ``lookahead``: each possible leak is probed in turn."""

    def __init__(
        self,
        config: Config,
        data: MarketData,
        fresh: FreshProcesses,
        limits: Limits,
        mode: str,
        report: Callable[[str], None],
    ) -> None:
        self._config, self._fresh = config, fresh
        self._data = self._replayed = data  # of these the candles that the time sufficed for
        # What a user's model says is derived again bar by bar, so that all of it is bit-equal.
        self._mode = "step" if config.model.own_class else mode
        self._weeks = weeks_later(config.market.interval_ms)
        self._limits, self._report = limits, report
        self._clock = SystemClock()
        self._until_s = self._clock.network_s() + limits.seconds
        fresh.limit_waits(lambda: max(0.0, self._until_s - self._clock.network_s()) + GRACE_S)
        self._found = LookaheadFinding("lookahead", planned=limits.probes)
        self._opened: dict[ExternalInput, None] = {}
        self._native: set[str] = set()
        self._own = bool(own_classes(config))

    def run(self, allow: Sequence[str]) -> LookaheadFinding:
        """Do all of it, or as much as the time allows."""
        finding = self._found
        with self._fresh.child(derive_whole, self._config, self._data, self._mode) as child:
            try:
                self._whole = self._replay_whole(child)
            except Overdue:
                raise StrategyFailed(
                    f"The strategy did not get through a replay within {self._limits.seconds:g} s; "
                    "see where it waits, or give more --seconds."
                ) from None
            self._given: list[EngineInput] = list(given_of(self._whole.steps))
            parts: dict[str, Callable[[], None]] = {
                "bars without a later bar in the process": self._without_later,
                "bars of higher frames": self._frames,
                "the symbols in another order": self._reordered,
                "a second run in one process": lambda: self._compare(
                    child, child.ask("again"), "it remembers earlier runs of its process"
                ),
                SURROUNDED: lambda: self._surrounded(allow),
                "jumping clocks": self._jumping,
                "each instrument alone": self._alone,
                "corrupted and cut futures": self._futures,
                f"the series {self._weeks} weeks later": self._later,
                f"prices times {PRICE_FACTOR}": self._dearer,
            }
            for name, part in parts.items():
                if finding.differences:
                    break
                self._report(f"lookahead: {name}")
                try:
                    self._check_time()
                    part()
                except (_TimeOver, Overdue):
                    finding.unfinished.append(name)
                    finding.unproved.append(f"{name}: not probed to the end, the time was over")
        self._conclude(allow)
        return finding

    # ------------------------------------------------------------ the whole

    def _replay_whole(self, child: Child) -> Whole:
        """Replay everything, for at most a sixth of the time; all parts are compared with it."""
        finding, stopped = self._found, False
        total = sum(len(part) for part in self._data.candles)
        until_s = self._clock.network_s() + self._limits.seconds / 6
        while isinstance(whole := child.receive(), int):
            self._report(f"lookahead: {min(whole, total):,} of {total:,} bars replayed")
            if self._clock.network_s() > until_s and not stopped:
                stopped = True
                child.send("stop")
        assert isinstance(whole, Whole)
        self._note_accesses(whole.accesses)
        bars = [bar for derived_step in whole.steps if (bar := derived_step.bar)]
        finding.given, finding.bars, finding.warmup = total, len(bars), whole.warmup
        if len(bars) <= whole.warmup * len(whole.setup.instruments) and not stopped:
            # Nothing would move, for nothing would be decided.
            raise ConfigInvalid(
                f"The strategy is warm after {whole.warmup:,} bars, and {len(bars):,} are looked "
                "at; give more."
            )
        if stopped:
            last_ms = bars[-1].open_time_ms
            self._replayed = self._data.opening(0, last_ms - 1)
            finding.unfinished.append("a replay of all bars")
            finding.unproved.append(
                f"the last {total - len(bars):,} of {total:,} bars: the time did not suffice"
            )
        return whole

    def _setup(self, *, jumping: bool = False, only: str | None = None) -> Setup:
        setup, compiled = self._whole.setup, self._whole.accesses.compiled
        items = tuple(item for item in setup.instruments if only in (None, item.id))
        return replace(setup, instruments=items, jumping=jumping, compiled=compiled)

    # ------------------------------------------------------------ the parts

    def _without_later(self) -> None:
        """Hand on the events one at a time, so that no later bar exists before a decision."""
        with self._fresh.child(step_blindly, self._setup()) as child:
            taken = iter(self._whole.steps)
            for count, given in enumerate(self._given):
                if count % 200 == 0:
                    self._check_time()
                mine = list(islice(taken, len(given[1])))
                try:
                    steps = child.ask(given)
                    moved = _first_unequal(mine, steps)
                    other = None if moved is None else child.ask("show")[moved]
                except StrategyFailed as error:
                    moved, other = 0, str(error)
                if moved is not None:
                    because = "it depends on bars that are still to come"
                    self._moved(mine[moved], other, because)
                    return
                self._found.compared += len(mine)
                self._found.without_later += sum(each.bar is not None for each in mine)
            self._note_accesses(child.ask(None))

    def _surrounded(self, allow: Sequence[str]) -> None:
        """Repeat without environment variables, in another folder, and with other hash seeds.

        Only for a user's class: ours read none of these. Where something was opened that is not
        allowed, that is the finding.
        """
        if not self._own or not all(_is_allowed(item, allow) for item in self._opened):
            return
        with tempfile.TemporaryDirectory(prefix="tracepaper-elsewhere-") as folder:
            link(allow, Path(folder))
            empty = Surroundings(frozenset(allow), folder)
            drawn = os.environ.get("PYTHONHASHSEED")
            for seed in (other_seed for other_seed in HASH_SEEDS if str(other_seed) != drawn):
                self._check_time()
                if (moved := self._moved_within(self._fresh.under(seed), empty)) is not None:
                    self._moved(*moved[:2], self._because_of(seed, empty))
                    return

    def _moved_within(
        self, fresh: FreshProcesses, around: Surroundings | None
    ) -> tuple[DerivedStep, DerivedStep | str, Sequence[str]] | None:
        """Return the first step that differs under *around*, and the variables that were unset."""
        setup = replace(self._setup(), around=around)
        with fresh.child(step_through, setup, self._given) as child:
            try:
                steps = child.receive()
            except StrategyFailed as error:
                return next(each for each in self._whole.steps if each.bar), str(error), ()
            self._found.compared += len(steps)
            moved = _first_unequal(self._whole.steps, steps)
            other = None if moved is None else child.ask(moved)
            child.send(None)
            accesses: Accesses = child.ask(None)
        self._note_accesses(accesses)
        if moved is None or other is None:
            return None
        return self._whole.steps[moved], other, accesses.unset

    def _because_of(self, seed: int, empty: Surroundings) -> str:
        """Name the one of the surroundings that moves a decision by itself."""
        if self._moved_within(self._fresh.under(seed), None) is not None:
            return ON_HASHES
        if (moved := self._moved_within(self._fresh, replace(empty, folder=None))) is not None:
            names = [name for name in moved[2] if name in os.environ]
            named = f", {', '.join(names)}" if names else ""
            return (
                f"it depends on the environment{named}; pass what cannot tell with --allow-reading"
            )
        if self._moved_within(self._fresh, replace(empty, kept=None)) is not None:
            return "it depends on the working folder"
        return f"it depends on {SURROUNDED}, on more than one of them at once"

    def _jumping(self) -> None:
        """Repeat in a process whose clocks jump at each reading."""
        with self._fresh.child(step_through, self._setup(jumping=True), self._given) as child:
            self._compare(child, child.receive(), ON_CLOCK)

    def _compare(self, child: Child, steps: Sequence[bytes], because: str) -> None:
        for place, (mine, other) in enumerate(zip(self._whole.steps, steps, strict=True)):
            self._found.compared += 1
            if packed(mine) != other:
                self._moved(mine, child.ask(place), because)
                return
        child.send(None)

    def _frames(self) -> None:
        """Compare the bars of higher timeframes with the closed ones of the whole file."""
        if not any(derived_step.frames for derived_step in self._whole.steps):
            return
        whole = self._whole
        compared, difference = first_false_frame(
            self._replayed, whole.setup.instruments, whole.steps
        )
        self._found.compared += compared
        if difference is not None:
            self._found.differences.append(difference)
            self._found.because = (
                "a bar of a higher frame was handed on that had not closed, or is not what its "
                "bars add up to"
            )

    def _reordered(self) -> None:
        """Hand on the bars of each close in the opposite order of their symbols."""
        if len(self._whole.setup.instruments) < 2:  # two have an order
            return
        reverse = replace(self._replayed, candles=self._replayed.candles[::-1])
        with self._fresh.child(derive_whole, self._config, reverse, self._mode) as child:
            while isinstance(whole := child.receive(), int):
                self._check_time()
            assert isinstance(whole, Whole)
        # A bar is decided, or taken in, once in a replay.
        others = {
            (bar.instrument, bar.open_time_ms): derived_step
            for derived_step in whole.steps
            if (bar := derived_step.bar)
        }
        for mine in self._whole.steps:
            if (bar := mine.bar) is None:
                continue
            self._found.compared += 1
            other = others[bar.instrument, bar.open_time_ms]
            if not same_judgement(mine, other):
                self._moved(
                    mine,
                    other,
                    "it depends on the order of the symbols within a close: what they share "
                    "changes while they are decided; let one PortfolioStrategy decide for all",
                )
                return

    def _alone(self) -> None:
        """Step each of several instruments through by itself; a portfolio decides for all."""
        if len(self._whole.setup.instruments) < 2 or self._whole.is_portfolio:  # two can share
            return
        for item in self._whole.setup.instruments:
            mine = [
                derived_step
                for derived_step in self._whole.steps
                if getattr(derived_step.step.event, "instrument", item.id) == item.id
                and not isinstance(derived_step.step.event, Closed)
            ]
            given: list[EngineInput] = [
                (derived_step.step.event, [derived_step.prediction]) for derived_step in mine
            ]
            with self._fresh.child(step_through, self._setup(only=item.id), given) as child:
                steps = child.receive()
                for place, (together, alone) in enumerate(zip(mine, steps, strict=True)):
                    self._found.compared += 1
                    if packed(together) == alone:
                        continue
                    other = child.ask(place)
                    if not same_judgement(together, other):
                        self._moved(
                            together,
                            other,
                            f"{item.id} is decided otherwise without the other instruments: its "
                            "objects share something; let one PortfolioStrategy decide for all",
                        )
                        return

    def _futures(self) -> None:
        """Corrupt or cut off what follows bars that are spread over the whole file."""
        finding = self._found
        probes = _spread(self._replayed.candles, self._limits, self._whole.warmup)
        finding.planned = len(probes)
        with self._fresh.child(derive_probes, self._config, self._data, self._mode) as child:
            for number, probe in enumerate(probes):
                if number:
                    self._check_time()
                self._report(f"lookahead: future {number + 1} of {len(probes)}")
                compared, difference = child.ask(probe)
                finding.probes += 1
                finding.compared += compared
                if difference is not None:
                    finding.differences.append(difference)
                    finding.because = (
                        "it depends on bars that are still to come"
                        if self._config.model.covariates is None
                        else "it depends on bars, or rows of covariates, that are still to come"
                    )
                    return
            self._note_accesses(child.ask(None))

    def _later(self) -> None:
        """Move the whole series in time; what then differs depends on the date."""
        with replaced_covariates(self._config, moved_by(self._weeks * WEEK_MS)) as config:
            self._compare_moved(
                self._replayed.shifted(self._weeks), "on the date", same_judgement, config
            )

    def _dearer(self) -> None:
        """Multiply all prices; whose signal then differs depends on the absolute price."""
        self._compare_moved(
            self._replayed.scaled(PRICE_FACTOR), "on the absolute price", same_signal, self._config
        )

    def _compare_moved(
        self,
        moved: MarketData,
        on: str,
        same: Callable[[DerivedStep, DerivedStep], bool],
        config: Config,
    ) -> None:
        try:
            with self._fresh.child(derive_whole, config, moved, self._mode) as child:
                while isinstance(whole := child.receive(), int):
                    self._check_time()
                assert isinstance(whole, Whole)
        except TracepaperError as error:
            self._found.unproved.append(f"whether it depends {on}: {error}")
            return
        for mine, other in zip(self._whole.steps, whole.steps, strict=False):
            if not same(mine, other):
                first = difference_of(mine, other)
                self._found.depends.append(
                    f"it depends {on}, first at {first.instrument} bar {iso(first.open_time_ms)}"
                )
                return

    # ------------------------------------------------------------ what comes of it

    def _check_time(self) -> None:
        if self._clock.network_s() > self._until_s:
            raise _TimeOver

    def _note_accesses(self, accesses: Accesses) -> None:
        self._opened.update(dict.fromkeys(accesses.opened))
        self._native.update(accesses.native)

    def _moved(self, mine: DerivedStep, other: DerivedStep | str | None, because: str) -> None:
        """Note the first difference; what also moves in two equal runs is no function of bars."""
        self._found.differences.append(
            difference_of(mine, other)
            if isinstance(other, DerivedStep)
            else Difference.of(mine.step, "the step", "made", f"refused: {other}")
        )
        self._report("lookahead: the same once more, nothing withheld")
        given = self._given[: mine.step.sequence + LOOKED_BEYOND]
        first = self._look(given)
        if not all(self._look(given) == first for _ in range(LOOKS - 1)):
            because = f"{because}, or {UNEQUAL}" if because == ON_CLOCK else UNEQUAL
        self._found.because = because

    def _look(self, given: Sequence[EngineInput]) -> list[bytes] | None:
        """Return the steps of a process of its own over *given*; None where it fails."""
        with self._fresh.child(step_through, self._setup(), given) as child:
            try:
                steps: list[bytes] = child.receive()
            except (TracepaperError, Overdue):
                return None
        return steps

    def _conclude(self, allow: Sequence[str]) -> None:
        finding = self._found
        self._note_tables()
        for item in self._opened:
            (finding.allowed if _is_allowed(item, allow) else finding.opened).append(item)
        if self._own:
            signals = [
                derived_step.signal
                for derived_step in self._whole.steps
                if derived_step.signal is not None
            ]
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
            if declared := self._whole.accesses.declared:
                finding.unproved.append(
                    f"whether its declared files tell the future: {', '.join(declared)}"
                )
            if self._native:
                finding.unproved.append(
                    f"what {', '.join(sorted(self._native))} opened: native code is not heard"
                )

    def _note_tables(self) -> None:
        """Take a table in a source of the class for a file that it read."""
        for module in self._whole.accesses.modules:
            if (source := source_of(module)) is None:
                self._found.unproved.append(f"what {module} holds: it is compiled")
            elif (values := largest_table(source)) > 0:
                self._opened[ExternalInput("table", str(source))] = None
                self._report(f"lookahead: a table of {values:,} values in {source}")


def _is_allowed(item: ExternalInput, allow: Sequence[str]) -> bool:
    folders = [Path(name).resolve() for name in allow]
    inside = any(Path(item.name).is_relative_to(folder) for folder in folders)
    return item.name in allow or (item.what in {"file", "table"} and inside)


def _spread(candles: Sequence[Candles], limits: Limits, warmup: int) -> list[FutureProbe]:
    """Return a probe in each of as many equal parts of the file; their order is a seeded one."""
    times = np.unique(np.concatenate([part.open_time_ms for part in candles]))
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


def _first_unequal(derived: Sequence[DerivedStep], steps: Sequence[bytes]) -> int | None:
    """Return the index of the first of *derived* whose packed step differs; None without one."""
    pairs = enumerate(zip(derived, steps, strict=True))
    return next((index for index, (mine, other) in pairs if packed(mine) != other), None)
