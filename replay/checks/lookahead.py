"""``lookahead`` and ``recursive``: change the future, or cut the past off, and look what moves.

No decision may move where later bars are absent or other, where the process has seen
nothing before, where its clocks jump or where an instrument is alone; and a user's class may open
nothing but its declared files. What peeks is named with the bar. After its warm-up none may move
either that started later, given its account and declared state; what it keeps beside them is named.

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
    Accesses,
    DerivedRun,
    MovedStep,
    SentRun,
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
from tracepaper.strategies.units import iso

GRACE_S: Final = 10.0
"""An answer under way when the time is over is waited for this long, wall seconds."""
MODEL: Final = "tracepaper.strategies.forecasters.build"
"""What a check of a model loads once rather than in every fresh process."""


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
    """Look for whatever a decision over *data* depends on beside its own past bars.

    *allow* names files, folders, addresses or programs that the class may open. Raises
    ``ConfigInvalid`` where the candles are too few to decide anything.
    """
    if not data.frames:
        # A cut future changes them no more.
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
    """Start at *probes* later bars, each time in a process that has seen nothing.

    The run until there is recorded and goes on as ``replay --resume`` does: after *warmup* bars,
    and given its account and declared state, nothing may differ. Of several instruments all start
    at the time of a bar of the first.
    """
    limits, starts = Limits(probes, math.inf), later_starts(data, probes, warmup)
    return Check(config, data, fresh, limits, mode, report, starts=starts).run()


def later_starts(data: MarketData, probes: int, warmup: int) -> list[int]:
    """Return when bars open, spread over *data*, before which every instrument has *warmup* bars.

    Raises ``DataInvalid`` where there is none.
    """
    candles = data.candles
    for part in candles:
        if len(part) - warmup < 2:  # one bar to start later by, one to compare
            raise DataInvalid(
                f"{part.path} holds {len(part)} bars and the warm-up alone takes {warmup}; "
                "give more data."
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
    """One ``lookahead`` or ``recursive``: each possible leak is probed in turn."""

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
        """Check *config* over *data*: its past by later *starts*, or without them its future."""
        name = LOOKAHEAD if starts is None else RECURSIVE
        self.config, self.allow, self._fresh = config, allow, fresh
        self.starts = starts or ()
        self.data = self.replayed = data  # of these the candles that the time sufficed for
        # What a user's model says is derived again bar by bar, so that all of it is bit-equal.
        self._mode = "step" if config.model.custom_class and name == LOOKAHEAD else mode
        self.weeks = weeks_later(config.market.interval_ms)
        self.is_custom = bool(custom_classes(config))
        self.limits, self.report = limits, report
        self._clock = SystemClock()
        self._until_s = self._clock.network_s() + limits.seconds
        if math.isfinite(limits.seconds):
            fresh.limit_waits(lambda: max(0.0, self._left_s()) + GRACE_S)
        self.finding = CheckFinding(name, planned=limits.probes)
        self.moved_first: MovedStep | None = None
        self.opened: dict[ExternalInput, None] = {}
        self._native: set[str] = set()

    def run(self) -> CheckFinding:
        """Do all of it, or as much as the time allows."""
        finding = self.finding
        try:
            self.whole = self._replay_whole()
        except Overdue:
            raise StrategyFailed(
                f"The strategy did not get through a replay within {self.limits.seconds:g} s; "
                "see where it waits, or give more --seconds."
            ) from None
        self.is_portfolio = self.whole.sent.is_portfolio
        self.instruments = self.whole.sent.setup.run.instruments
        for probe in PROBES:
            is_due = self.moved_first is not None if probe.explains else not finding.differences
            if probe.check != finding.check or not is_due:
                continue
            name = probe.name.format(weeks=self.weeks)
            self.report(f"{finding.check}: {name}")
            try:
                self._probe(probe)
            except (_TimeOver, Overdue):
                finding.unfinished.append(name)
                finding.unproved.append(f"{name}: not probed to the end, the time was over")
        if finding.check == LOOKAHEAD:
            self._conclude()
        return finding

    def _replay_whole(self) -> DerivedRun:
        """Replay everything, for at most a sixth of the time; all probes are compared with it."""
        finding = self.finding
        total = sum(map(len, self.data.candles))
        whole = self.derived(self.data, within_s=self.limits.seconds / 6)
        bars, _, opened_ms = whole.opened()
        warmup, is_cut = whole.sent.warmup, whole.sent.is_cut
        finding.given, finding.bars, finding.warmup = total, bars, warmup
        if bars <= warmup * len(whole.sent.setup.run.instruments) and not is_cut:
            # Nothing would move, for nothing would be decided.
            raise ConfigInvalid(
                f"The strategy is warm after {warmup:,} bars, and {bars:,} are looked at; give "
                "more."
            )
        if is_cut:
            self.replayed = self.data.opening(0, opened_ms - 1)
            finding.unfinished.append("a replay of all bars")
            finding.unproved.append(
                f"the last {total - bars:,} of {total:,} bars: the time did not suffice"
            )
        return whole

    def _probe(self, probe: CheckProbe) -> None:
        """Make the trials of *probe* until one of them moves a step."""
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
                self.finding.unproved.append(f"whether it depends {trial.because}: {error}")
                return
            if moved is None:
                continue
            difference = moved.difference
            if not probe.is_refused:
                at = f"{difference.instrument} bar {iso(difference.open_time_ms)}"
                self.finding.depends.append(f"it depends {trial.because}, first at {at}")
                return
            names = [name for name in moved.unset if name in os.environ]
            self.finding.because = trial.because.format(f", {', '.join(names)}" if names else "")
            self.finding.differences.append(difference)
            self.moved_first = moved
            return

    # ------------------------------------------------------------ runs of other processes

    def moved(self, trial: ProbeTrial) -> MovedStep | None:
        """Return the first step of *trial* that differs; None where all are as expected."""
        is_whole = True
        if isinstance(trial.subject, MarketData):
            other = self.derived(trial.subject, trial.config)
        elif trial.subject is None:
            assert trial.from_ms is not None
            self._record = self.derived(self.data, until_ms=trial.from_ms).sent.content
            other = self.resumed()
        else:
            given = self._again(trial, trial.subject)
            if isinstance(given, MovedStep):
                return given
            other, is_whole = given
        self.finding.probes += trial.until_ms is not None or trial.from_ms is not None
        moved, compared = first_moved(
            trial.mine, other, trial.same, until_ms=trial.until_ms, from_ms=trial.from_ms
        )
        self.finding.compared += compared
        if moved is None and not is_whole:
            raise _TimeOver
        return moved and moved._replace(unset=other.sent.accesses.unset)

    def _again(self, trial: ProbeTrial, setup: Setup) -> tuple[DerivedRun, bool] | MovedStep:
        """Derive the run of *setup*; return it and whether the time sufficed, or where it fails."""
        mine, seed, at, is_over = trial.mine, trial.hash_seed, 0, False
        fresh = self._fresh if seed is None else self._fresh.under(seed)
        content = None if trial.is_blind else mine.sent.content
        job = fresh.child(send_again, setup, content, trial.only, has_past=trial.has_past)
        with job as child:
            try:
                if trial.is_blind:
                    child.receive()
                    for turn, rows in enumerate(fed_together(mine.sent.content)):
                        if is_over := turn % 200 == 0 and self._left_s() < 0:
                            break
                        child.ask(rows)  # until it asks for the next
                        at += len(rows)
                        self.finding.without_later += sum(type(row[2]) is Bar for row in rows)
                    child.send(None)
                return self._received(child), not is_over
            except StrategyFailed as error:
                return MovedStep(mine.bar_from(at), str(error))

    def _received(self, child: Child) -> DerivedRun:
        """Return the run that *child* sends, and note what its class opened."""
        sent: SentRun = child.receive()
        self._note_accesses(sent.accesses)
        return DerivedRun(sent)

    def derived(
        self,
        data: MarketData,
        config: Config | None = None,
        *,
        within_s: float | None = None,
        until_ms: int | None = None,
    ) -> DerivedRun:
        """Return the replay of *data* by a fresh process, or what is done of it *within_s*."""
        left_s = self._left_s() if within_s is None else within_s
        given = config or self.config, data, self._mode, left_s
        with self._fresh.child(send_candles, *given, until_ms=until_ms) as child:
            whole = self._received(child)
        if whole.sent.is_cut and within_s is None:
            raise _TimeOver
        return whole

    def resumed(self, until_ms: int | None = None) -> DerivedRun:
        """Return the run that goes on with the record of the last later start, until *until_ms*."""
        given = self.config, self.data, self._record, until_ms
        with self._fresh.child(send_resumed, *given) as child:
            return self._received(child)

    def again(self, most: int) -> tuple[bytes, str] | None:
        """Return the first *most* steps of another equal run, None where it fails."""
        given = self.setup(), self.whole.sent.content, None, most
        with self._fresh.child(send_again, *given) as child:
            try:
                run = self._received(child)
            except (TracepaperError, Overdue):
                return None
        return run.head, repr(run.sent.columns)

    def setup(self, **changed: Any) -> Setup:  # noqa: ANN401 - fields of a Setup
        """Return the engine of the whole replay, *changed*."""
        compiled = self.whole.sent.accesses.compiled
        return replace(self.whole.sent.setup, compiled=compiled, **changed)

    def is_allowed(self, item: ExternalInput) -> bool:
        """Return whether the class may open *item*."""
        folders = [Path(name).resolve() for name in self.allow]
        inside = any(Path(item.name).is_relative_to(folder) for folder in folders)
        return item.name in self.allow or (item.what in {"file", "table"} and inside)

    def _left_s(self) -> float:
        """Return how many seconds of the check are left."""
        return self._until_s - self._clock.network_s()

    def _note_accesses(self, accesses: Accesses) -> None:
        self.opened.update(dict.fromkeys(accesses.opened))
        self._native.update(accesses.native)

    # ------------------------------------------------------------ what comes of it

    def _conclude(self) -> None:
        finding = self.finding
        self._note_tables()
        for item in self.opened:
            (finding.allowed if self.is_allowed(item) else finding.opened).append(item)
        if self.is_custom:
            signals = [signal for signal, _ in self.whole.sent.signals.values()]
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
            if declared := self.whole.sent.accesses.declared:
                finding.unproved.append(
                    f"whether its declared files tell the future: {', '.join(declared)}"
                )
            if self._native:
                finding.unproved.append(
                    f"which files {', '.join(sorted(self._native))} opened, since native code is "
                    "not observed"
                )

    def _note_tables(self) -> None:
        """Take a table in a source of the class for a file that it read."""
        for module in self.whole.sent.accesses.modules:
            source = Path(module)
            if source.suffix != ".py" or not source.is_file():
                self.finding.unproved.append(f"what {module} holds: it is compiled")
            elif (values := largest_table(source)) > 0:
                self.opened[ExternalInput("table", str(source))] = None
                self.report(f"lookahead: a table of {values:,} values in {source}")
