"""``lookahead`` and ``recursive``: run a strategy in other conditions, and compare its decisions.

``lookahead`` runs it again in the same process, bar by bar, in another process, and over data whose
later bars are cut off or changed: no decision may differ. ``recursive`` resumes the run from later
starts: no signal after the warm-up may differ. The rules are docs/strategies.md, U3 and U8 to U11.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, custom_classes
from tracepaper.daemon.session.build import with_usual_warmup
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.checks.compare import LOOKAHEAD, RECURSIVE, CheckFinding
from tracepaper.replay.checks.cut_files import is_candle_file
from tracepaper.replay.checks.decisions import (
    EVERYTHING,
    NOTE,
    DerivedRun,
    first_difference,
    send_record,
    send_resumed,
    send_run,
)
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.isolation import Child, FreshProcesses, Overdue
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, StrategyFailed
from tracepaper.strategies.units import count_of

MODEL: Final = "tracepaper.strategies.forecasters.build"
"""The module that a check of a model loads once rather than in every fresh process."""

AGAIN: Final = "it differs when it runs again"
ELSEWHERE: Final = (
    "it differs in another process, with other hashes of texts, environment variables, working "
    "folder and clock"
)
CHANGED: Final = "it differs when later bars, or other symbols' bars, are changed"
CUT: Final = "it differs when later bars are cut off"
NOT_WARM: Final = (
    "it differs after a later start: its warm-up bars do not suffice, or its State does not "
    "declare all that it keeps"
)
FILES_END: Final = (
    "it differs when the candles that it reads from files end with this bar, too: look one up by "
    "its open time, once it has closed (context.open_time is that of this bar)"
)
BARS_AFTER: Final = 512
"""Changed bars after a probe: a batched pass of a model processes them with the bars before."""


@dataclass(frozen=True)
class Limits:
    """Limits of a check: the number of changed or cut futures, and the total seconds."""

    probes: int = 12
    seconds: float = 300.0
    seed: int = 0


class ProbeRun(NamedTuple):
    """Another run, which must decide as the whole run does, or as that over the data *base*."""

    name: str
    cause: str  # what a difference shows
    data: Callable[[], MarketData]
    how: Mapping[str, Any] = {}  # as ``send_run`` takes it
    depth: int = EVERYTHING
    where: Mapping[str, Any] = {}  # the compared bars, as ``first_difference`` takes them
    base: Callable[[], MarketData] | None = None


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

    *allow* names files, folders, addresses, programs or variables that the class may read. Raises
    ``ConfigInvalid`` where the candles are too few for a decision.
    """
    # Both are chosen now, so that a cut future does not change them.
    config = with_usual_warmup(config, data.span_ms)
    if not data.frames:
        config, shortened = fit_windows(config, data.span_ms)
        for sentence in shortened:
            report(f"Warning: {sentence}.")
    if config.model.custom_class:
        mode = "step"  # bar by bar, its predictions repeat in every bit
    check = _Check(LOOKAHEAD, config, data, fresh, limits or Limits(), mode, report, allow)
    return check.run(check.lookahead_trials)


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
    given its account and declared state, no decision may differ. Raises ``DataInvalid`` where not
    all symbols have so many bars before two others.
    """
    candles = data.candles
    firsts = [int(part.open_time_ms[warmup]) for part in candles if len(part) > warmup]
    times = data.opens_ms[data.opens_ms > max(firsts, default=0)]
    if len(firsts) < len(candles) or times.size < 2:
        raise DataInvalid(
            f"The warm-up takes {count_of(warmup, 'bar')} of each symbol, and too few follow in "
            "common; give more data."
        )
    places = np.linspace(0, times.size - 1, probes + 2).astype(int)[1:-1]
    starts = np.unique(times[places]).tolist()
    check = _Check(RECURSIVE, config, data, fresh, Limits(probes, math.inf), mode, report)
    return check.run(
        lambda: (
            ProbeRun(
                f"start {at} of {len(starts)}", NOT_WARM, lambda: data, {"resumed_ms": from_ms},
                NOTE, {"from_ms": from_ms},
            )
            for at, from_ms in enumerate(starts, 1)
        )
    )  # fmt: skip


class _Check:
    """One ``lookahead`` or ``recursive``."""

    def __init__(
        self,
        name: str,
        config: Config,
        data: MarketData,
        fresh: FreshProcesses,
        limits: Limits,
        mode: str,
        report: Callable[[str], None],
        allow: Sequence[str] = (),
    ) -> None:
        self.config, self.data, self.limits = config, data, limits
        self._fresh, self._mode, self._report = fresh, mode, report
        self._allow = frozenset(filter(None, allow))
        self._is_custom = bool(custom_classes(config))
        self._files: Sequence[tuple[Sequence[str], str]] = ()
        self._ended: set[str] = set()
        self._clock = SystemClock()
        self._until_s = self._clock.network_s() + limits.seconds
        given = sum(map(len, data.candles))
        self.finding = CheckFinding(name, planned=limits.probes, given=given)

    def run(self, trials: Callable[[], Iterator[ProbeRun]]) -> CheckFinding:
        """Run the strategy, then *trials* until one differs or the time is over."""
        finding, rest = self.finding, ["the whole run"]
        try:
            self._begin(self._derived(self.data))
            planned = list(trials())
            finding.planned = sum(map(_is_probe, planned))
            for place, trial in enumerate(planned):
                rest = [each.name for each in planned[place:]]
                self._report(f"{finding.check}: {trial.name}")
                self._try(trial)
                if finding.differences:
                    break
        except Overdue:
            finding.unfinished = rest
            finding.unproved.append(f"{', '.join(rest)}: the time was over")
        self._note_files()
        return finding

    def _begin(self, whole: DerivedRun) -> None:
        """Take *whole*, with which others are compared; note what cannot be proved of it."""
        if whole.error is not None:
            raise whole.error
        self.whole, finding = whole, self.finding
        finding.bars, finding.warmup = whole.bars, whole.warmup
        if whole.bars <= whole.warmup * len({part.symbol for part in self.data.candles}):
            # Nothing could differ, since nothing would be decided.
            raise ConfigInvalid(
                f"The strategy is warm after {whole.warmup:,} bars, and only {whole.bars:,} are "
                "given; give more."
            )
        if not self._is_custom:
            return
        if whole.idle:
            finding.unproved.append(f"anything of what it would do. {whole.idle.rstrip('.')}")
        if finding.check == RECURSIVE:
            return
        for item in whole.opened:
            (finding.allowed if self._is_allowed(item) else finding.opened).append(item)
        if whole.native:
            names = ", ".join(whole.native)
            finding.unproved.append(
                f"which files {names} opened, since native code is not observed"
            )

        self._files = (
            ([item.name for item in finding.allowed],
             "whether what it was allowed to open tells the future: {}"),
            (whole.declared, "whether its declared files tell the future: {}"),
        )  # fmt: skip

    def _note_files(self) -> None:
        """Note the files that the class read whole in every run."""
        for names, sentence in self._files:
            if left := [name for name in names if os.path.realpath(name) not in self._ended]:
                self.finding.unproved.append(sentence.format(", ".join(left)))

    def _is_allowed(self, item: ExternalInput) -> bool:
        folders = [Path(name).resolve() for name in self._allow]
        inside = any(Path(item.name).is_relative_to(folder) for folder in folders)
        return item.name in self._allow or (item.what == "file" and inside)

    def _try(self, trial: ProbeRun) -> None:
        """Derive the run of *trial*, and note its first difference."""
        finding = self.finding
        base = self.whole if trial.base is None else self._derived(trial.base())
        other = self._derived(trial.data(), **trial.how)
        if other.error is not None and not isinstance(other.error, StrategyFailed):
            raise other.error
        self._ended.update(other.ended)
        difference, compared = first_difference(base, other, trial.depth, **trial.where)
        finding.compared += compared
        finding.probes += _is_probe(trial)
        finding.without_later += other.bars if "one_by_one" in trial.how else 0
        if difference is not None:
            finding.cause = trial.cause
            finding.differences.append(difference)

    def _derived(
        self,
        data: MarketData,
        *,
        hash_seed: int | None = None,
        resumed_ms: int | None = None,
        **how: Any,  # noqa: ANN401 - as send_run takes them
    ) -> DerivedRun:
        """Return the run over *data* of a new process, or its error.

        With *resumed_ms* one process records it until then, and another one resumes it.
        """
        given = self.config, data, self._mode
        try:
            if hash_seed is not None:
                with (
                    FreshProcesses(*self._fresh.preload, hash_seed=hash_seed) as seeded,
                    seeded.child(send_run, *given, **how) as child,
                ):
                    return self._received(child)
            if resumed_ms is None:
                with self._fresh.child(send_run, *given, **how) as child:
                    return self._received(child)
            with self._fresh.child(send_record, *given, resumed_ms) as child:
                content = self._received(child)
            with self._fresh.child(send_resumed, data, content) as child:
                return self._received(child)
        except StrategyFailed as error:
            return DerivedRun(error=error)

    def _received(self, child: Child) -> Any:  # noqa: ANN401 - whatever the job sends
        left_s = self._until_s - self._clock.network_s()
        return child.receive(None if math.isinf(left_s) else max(0.0, left_s))

    def lookahead_trials(self) -> Iterator[ProbeRun]:
        """Yield what no decision may depend on."""
        data, whole = self.data, self.whole
        yield ProbeRun("the same run again in one process", AGAIN, lambda: data, {"times": 2})
        if self._is_custom and not self.finding.opened:  # else that is the finding
            how = {"hash_seed": 1, "kept": self._allow}  # the first hash seed is random
            yield ProbeRun("another process", ELSEWHERE, lambda: data, how)
        yield ProbeRun("bar by bar", CUT, lambda: data, {"one_by_one": True})
        keys = sorted({key for _, key in whole.decisions})
        if len(keys) > 1 and not whole.is_portfolio:
            for key in keys:
                changed = partial(_other_symbols, data, key)
                yield ProbeRun(f"all but {key} changed", CHANGED, changed, {}, NOTE, {"only": key})
        yield from self._futures()

    def _futures(self) -> Iterator[ProbeRun]:
        """Yield later data changed or cut off, at bars that are spread over the candles."""
        data, limits, times = self.data, self.limits, self.data.opens_ms
        if times.size < 3:  # one each of past, probe and future
            raise DataInvalid(
                f"With {count_of(times.size, 'bar')} there is no future to change; give more data."
            )
        rng, whole = np.random.default_rng(limits.seed), self.whole
        warmup = whole.warmup
        edges = np.linspace(min(warmup, times.size // 4), times.size - 1, limits.probes + 1)
        pairs = itertools.pairwise(edges.astype(int).tolist())
        places = {int(rng.integers(low, max(low + 1, high))) for low, high in pairs}
        back = max(2_000, 2 * warmup)
        if times.size <= 4 * back:
            back = times.size  # few bars: derive all from the first one
        names = [item.name for item in self.finding.allowed if item.what == "file"]
        files = [*filter(is_candle_file, [*names, *whole.declared])]
        # In random order: a check that runs out of time has then probed all parts of the data.
        for turn, place in enumerate(rng.permutation(sorted(places)).tolist()):
            at_ms, is_cut = int(times[place]), turn % 2 == 1
            until_ms = at_ms + BARS_AFTER * data.candles[0].interval_ms
            span = int(times[max(0, place - back)]), until_ms
            yield ProbeRun(
                f"future {turn + 1} of {len(places)}",
                CUT if is_cut else CHANGED,
                partial(_future, data, at_ms, span, is_cut=is_cut),
                where={"until_ms": at_ms},
                base=None if place <= back else partial(data.opening, *span),
            )
            if files:
                yield ProbeRun(
                    f"files until future {turn + 1}",
                    FILES_END,
                    partial(_future, data, at_ms, span, is_cut=True),
                    {"files": files},
                    where={"until_ms": at_ms},
                    base=None if place <= back else partial(data.opening, *span),
                )


def _is_probe(trial: ProbeRun) -> bool:
    """Return whether *trial* is one of the futures or later starts, which a finding counts."""
    return not trial.where.keys().isdisjoint({"until_ms", "from_ms"})


def _future(data: MarketData, at_ms: int, span: tuple[int, int], *, is_cut: bool) -> MarketData:
    return data.until(at_ms, cut=is_cut).opening(*span)


def _other_symbols(data: MarketData, key: str) -> MarketData:
    """Return *data* with the candles of all instruments but *key* backwards, which stay valid."""
    symbol = key.partition(":")[2]

    def changed(part: Candles) -> Candles:
        opens, closes = part.close[::-1], part.open[::-1]
        return replace(part[::-1], open_time_ms=part.open_time_ms, open=opens, close=closes)

    return replace(
        data,
        candles=[part if part.symbol == symbol else changed(part) for part in data.candles],
        # Those of the others would contradict their candles.
        frames=[part for part in data.frames if part.symbol == symbol],
    )
