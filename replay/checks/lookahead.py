"""``lookahead`` and ``recursive``: change the future or the start, and compare the decisions.

No decision may differ where later bars are absent or changed, where the process is new, where its
clocks jump or where an instrument is alone; and a user's class may open only its declared files.
The finding names the bar. After a later start, given its account and declared state, no decision
after the warm-up may differ either; the finding names what else the strategy keeps.

The rules are docs/strategies.md, U3 and U8 to U11.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, custom_classes
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import LOOKAHEAD, RECURSIVE, CheckFinding, Difference
from tracepaper.replay.checks.derived import (
    DerivedRun,
    MovedStep,
    RunMessage,
    Setup,
    fed_together,
    first_moved,
    send_again,
    send_candles,
    send_resumed,
)
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.isolation import Child, FreshProcesses, Overdue
from tracepaper.replay.checks.perturbations import largest_table, weeks_later
from tracepaper.replay.checks.probes import PROBES, CheckProbe, Limits, ProbeTrial
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, StrategyFailed, TracepaperError
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import count_of, iso
from tracepaper.strategies.without_fills import DecisionCounts

GRACE_S: Final = 10.0
"""Wall seconds to wait for an answer after the time is over."""
MODEL: Final = "tracepaper.strategies.forecasters.build"
"""The module that a check of a model loads once rather than in every fresh process."""


def lookahead(
    config: Config,
    data: MarketData,
    fresh: FreshProcesses,
    limits: Limits | None = None,
    *,
    mode: str = "scan",
    allow: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> CheckFinding:
    """Find what decisions over *data* depend on besides their past bars.

    *allow* names files, folders, addresses or programs that the class may open. Raises
    ``ConfigInvalid`` where the candles are too few for a decision.
    """
    if not data.frames:
        # Fit them now, so that a cut future does not change them.
        config, shortened = fit_windows(config, data.span_ms)
        for sentence in shortened:
            report(f"Warning: {sentence}.")
    check = Check(config, data, fresh, limits or Limits(), mode, report, allow=allow)
    return check.run()


def recursive(
    config: Config,
    data: MarketData,
    fresh: FreshProcesses,
    *,
    probes: int,
    warmup: int,
    mode: str = "scan",
    report: Callable[[str], None] = lambda _: None,
) -> CheckFinding:
    """Start at *probes* later bars, each time in a new process.

    The run until that bar is recorded and resumed as ``replay --resume`` does: after *warmup* bars,
    given its account and declared state, no decision may differ. All instruments start together, at
    the time of a bar of the first.
    """
    limits, starts = Limits(probes, math.inf), later_starts(data, probes, warmup)
    return Check(config, data, fresh, limits, mode, report, starts=starts).run()


def later_starts(data: MarketData, probes: int, warmup: int) -> list[int]:
    """Return open times spread over *data* before which every instrument has *warmup* bars.

    Raises ``DataInvalid`` where there is no such time.
    """
    candles = data.candles
    for part in candles:
        if len(part) - warmup < 2:  # one bar to skip, one to compare
            raise DataInvalid(
                f"{part.path} holds {count_of(len(part), 'bar')} and the warm-up alone "
                f"takes {warmup}; give more data."
            )
    times = candles[0].open_time_ms
    last_ms = min(int(part.open_time_ms[-warmup - 1]) for part in candles)
    room = int(np.searchsorted(times, last_ms, side="right"))
    if room < 2:
        raise DataInvalid(
            f"After the first bar of {candles[0].path} too few bars of the others follow for the "
            f"warm-up of {warmup}; give candles of one time."
        )
    rows = sorted({max(1, round(room * (turn + 1) / (probes + 1))) for turn in range(probes)})
    return [
        max(
            int(part.open_time_ms[np.searchsorted(part.open_time_ms, times[row]) + warmup])
            for part in candles
        )
        for row in rows
    ]


class _TimeOver(Exception):
    """The seconds of a check are over."""


class Check:
    """One ``lookahead`` or ``recursive``: runs its probes in turn."""

    def __init__(
        self,
        config: Config,
        data: MarketData,
        fresh: FreshProcesses,
        limits: Limits,
        mode: str,
        report: Callable[[str], None],
        *,
        allow: Sequence[str] = (),
        starts: Sequence[int] | None = None,
    ) -> None:
        """Check *config* over *data*: with later *starts* ``recursive``, else ``lookahead``."""
        name = LOOKAHEAD if starts is None else RECURSIVE
        self.config, self.allow, self._fresh = config, allow, fresh
        self.starts = starts or ()
        self.data = self.replayed_data = data  # shortened to the bars that the time allows
        # A user's model predicts bar by bar, so that its predictions repeat in every bit.
        self._mode = "step" if config.model.custom_class and name == LOOKAHEAD else mode
        self.weeks = weeks_later(config.market.interval_ms)
        self.is_custom = bool(custom_classes(config))
        self.limits, self.report = limits, report
        self._clock = SystemClock()
        self._until_s = self._clock.network_s() + limits.seconds
        if math.isfinite(limits.seconds):
            fresh.limit_waits(lambda: max(0.0, self._left_s()) + GRACE_S)
        self.finding = CheckFinding(name, planned=limits.probes)
        self.moved_step: MovedStep | None = None
        self.opened: dict[ExternalInput, None] = {}
        self._native: set[str] = set()

    def run(self) -> CheckFinding:
        """Run all probes, or as many as the time allows."""
        finding = self.finding
        try:
            self.replay = self._replay_all()
        except Overdue:
            raise StrategyFailed(
                f"The strategy did not get through a replay within {self.limits.seconds:g} s; "
                "see where it waits, or give more --seconds."
            ) from None
        self.is_portfolio = self.replay.message.is_portfolio
        self.instruments = self.replay.message.setup.run.instruments
        for probe in PROBES:
            is_due = self.moved_step is not None if probe.explains else not finding.differences
            if probe.check != finding.check or not is_due:
                continue
            name = probe.name.format(weeks=self.weeks)
            self.report(f"{finding.check}: {name}")
            try:
                self._probe(probe)
            except (_TimeOver, Overdue):
                finding.unfinished.append(name)
                finding.unproved.append(f"{name}: not probed to the end, the time was over")
        self._note_idleness()
        if finding.check == LOOKAHEAD:
            self._conclude()
        return finding

    def _note_idleness(self) -> None:
        """Report that the class asked for no position at any bar, which proves little."""
        counts = DecisionCounts()
        for signal, _ in self.replay.message.signals.values():
            if signal is not None:
                action = signal.action if isinstance(signal, Signal) else Action.ORDERS
                counts.add(action, None, signal.reason, None)
        if self.is_custom and counts.bars and not counts.asked:
            sentences = counts.why_no_fill().rstrip(".")
            self.finding.unproved.append(f"anything of what it would do. {sentences}")

    def _replay_all(self) -> DerivedRun:
        """Replay everything in at most a sixth of the time; probes are compared with this run."""
        finding = self.finding
        total = sum(map(len, self.data.candles))
        replay = self.derived(self.data, within_s=self.limits.seconds / 6)
        bars, _, opened_ms = replay.opened()
        warmup, is_cut = replay.message.warmup, replay.message.is_cut
        finding.given, finding.bars, finding.warmup = total, bars, warmup
        if bars <= warmup * len(replay.message.setup.run.instruments) and not is_cut:
            # Nothing could differ, since nothing would be decided.
            raise ConfigInvalid(
                f"The strategy is warm after {warmup:,} bars, and only {bars:,} are given; give "
                "more."
            )
        if is_cut:
            self.replayed_data = self.data.opening(0, opened_ms - 1)
            finding.unfinished.append("a replay of all bars")
            finding.unproved.append(
                f"the last {total - bars:,} of {total:,} bars: the time was too short"
            )
        return replay

    def _probe(self, probe: CheckProbe) -> None:
        """Run the trials of *probe* until a step differs."""
        for trial in probe.trials(self):
            if isinstance(trial, Difference):
                self.finding.differences.append(trial)
                return
            if self._left_s() < 0:
                raise _TimeOver
            try:
                moved = self.moved(trial)
            except TracepaperError as error:
                if probe.is_refused:
                    raise
                self.finding.unproved.append(f"whether it depends {trial.cause}: {error}")
                return
            if moved is None:
                continue
            difference = moved.difference
            if not probe.is_refused:
                at = f"{difference.instrument} bar {iso(difference.open_time_ms)}"
                self.finding.depends.append(f"it depends {trial.cause}, first at {at}")
                return
            names = [name for name in moved.unset if name in os.environ]
            self.finding.because = trial.cause.format(f", {', '.join(names)}" if names else "")
            self.finding.differences.append(difference)
            self.moved_step = moved
            return

    # ------------------------------------------------------------ runs of other processes

    def moved(self, trial: ProbeTrial) -> MovedStep | None:
        """Return the first step of *trial* that differs; None where none does."""
        is_complete = True
        if isinstance(trial.subject, MarketData):
            other = self.derived(trial.subject, trial.config)
        elif trial.subject is None:
            assert trial.from_ms is not None
            self._record = self.derived(self.data, until_ms=trial.from_ms).message.content
            other = self.resumed()
        else:
            derived = self._again(trial, trial.subject)
            if isinstance(derived, MovedStep):
                return derived
            other, is_complete = derived
        self.finding.probes += trial.until_ms is not None or trial.from_ms is not None
        moved, compared = first_moved(
            trial.base, other, trial.same, until_ms=trial.until_ms, from_ms=trial.from_ms
        )
        self.finding.compared += compared
        if moved is None and not is_complete:
            raise _TimeOver
        return moved and moved._replace(unset=other.message.accesses.unset)

    def _again(self, trial: ProbeTrial, setup: Setup) -> tuple[DerivedRun, bool] | MovedStep:
        """Derive the run of *setup*; return it and whether it is complete, or the failed step."""
        base, seed, at, is_over = trial.base, trial.hash_seed, 0, False
        fresh = self._fresh if seed is None else self._fresh.under(seed)
        content = None if trial.one_by_one else base.message.content
        job = fresh.child(send_again, setup, content, trial.only, runs_twice=trial.runs_twice)
        with job as child:
            try:
                if trial.one_by_one:
                    child.receive()
                    for turn, rows in enumerate(fed_together(base.message.content)):
                        if is_over := turn % 200 == 0 and self._left_s() < 0:
                            break
                        child.ask(rows)  # returns when it requests the next
                        at += len(rows)
                        self.finding.without_later += sum(type(row[2]) is Bar for row in rows)
                    child.send(None)
                return self._received(child), not is_over
            except StrategyFailed as error:
                return MovedStep(base.bar_from(at), str(error))

    def _received(self, child: Child) -> DerivedRun:
        """Return the run that *child* sends, and record its accesses."""
        message: RunMessage = child.receive()
        self.opened.update(dict.fromkeys(message.accesses.opened))
        self._native.update(message.accesses.native)
        return DerivedRun(message)

    def derived(
        self,
        data: MarketData,
        config: Config | None = None,
        *,
        within_s: float | None = None,
        until_ms: int | None = None,
    ) -> DerivedRun:
        """Return the replay of *data* by a fresh process, or the part done *within_s*."""
        left_s = self._left_s() if within_s is None else within_s
        given = config or self.config, data, self._mode, left_s
        with self._fresh.child(send_candles, *given, until_ms=until_ms) as child:
            replay = self._received(child)
        if replay.message.is_cut and within_s is None:
            raise _TimeOver
        return replay

    def resumed(self, until_ms: int | None = None) -> DerivedRun:
        """Return the run that resumes the record of the newest later start, until *until_ms*."""
        with self._fresh.child(
            send_resumed, self.config, self.data, self._record, until_ms
        ) as child:
            return self._received(child)

    def again(self, most: int) -> tuple[bytes, str] | None:
        """Return the first *most* steps of another equal run; None where it fails."""
        given = self.setup(), self.replay.message.content, None, most
        with self._fresh.child(send_again, *given) as child:
            try:
                run = self._received(child)
            except (TracepaperError, Overdue):
                return None
        return run.head, repr(run.message.columns)

    def setup(self, **changed: Any) -> Setup:  # noqa: ANN401 - fields of a Setup
        """Return the setup of the whole replay with *changed* fields."""
        compiled = self.replay.message.accesses.compiled
        return replace(self.replay.message.setup, compiled=compiled, **changed)

    def is_allowed(self, item: ExternalInput) -> bool:
        """Return whether the class may open *item*."""
        folders = [Path(name).resolve() for name in self.allow]
        inside = any(Path(item.name).is_relative_to(folder) for folder in folders)
        return item.name in self.allow or (item.what in {"file", "table"} and inside)

    def _left_s(self) -> float:
        """Return how many seconds of the check are left."""
        return self._until_s - self._clock.network_s()

    # ------------------------------------------------------------ conclusion

    def _conclude(self) -> None:
        finding = self.finding
        self._note_tables()
        for item in self.opened:
            (finding.allowed if self.is_allowed(item) else finding.opened).append(item)
        if self.is_custom:
            if finding.without_later < finding.bars and not finding.differences:
                left = finding.bars - finding.without_later
                finding.unproved.append(f"{count_of(left, 'bar')} not decided blindly")
            if finding.allowed:
                finding.unproved.append(
                    "whether what it was allowed to open tells the future: "
                    + ", ".join(item.name for item in finding.allowed)
                )
            if declared := self.replay.message.accesses.declared:
                finding.unproved.append(
                    f"whether its declared files tell the future: {', '.join(declared)}"
                )
            if self._native:
                finding.unproved.append(
                    f"which files {', '.join(sorted(self._native))} opened, since native code is "
                    "not observed"
                )

    def _note_tables(self) -> None:
        """Report a large table in a source of the class like a file that it read."""
        for module in self.replay.message.accesses.modules:
            source = Path(module)
            if source.suffix != ".py" or not source.is_file():
                self.finding.unproved.append(f"what {module} holds: it is compiled")
            elif (values := largest_table(source)) > 0:
                self.opened[ExternalInput("table", str(source))] = None
                self.report(f"lookahead: a table of {values:,} values in {source}")
