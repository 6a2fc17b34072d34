"""Measures how often a run like its backtest is called outside, and when a halved edge is found.

    PYTHONPATH=tests:tests/support python tests/benchmarks/drift.py DATABASE [RUN]

A year is drawn from the blocks of five days of the run, which is the backtest, and compared with
it, or with a backtest that is drawn from them too. An edge is added to each day's return, such that
the year has a stated Sharpe ratio; then half of it goes. The last line is the CPU time of a day's
update.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.checks.drift import LEVEL, DaySums, drift_of, read_days
from tracepaper.replay.report.metrics import BLOCK_DAYS, YEAR_DAYS
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader

YEARS: Final = 1_000
SHARPES: Final = (2, 5, 10, 20)


def drawn(sums: DaySums, rng: np.random.Generator) -> DaySums:
    """Return a year of blocks of five days of *sums*, drawn with replacement."""
    blocks = sums.days.size // BLOCK_DAYS
    starts = BLOCK_DAYS * rng.integers(blocks, size=YEAR_DAYS // BLOCK_DAYS)
    at = (starts[:, None] + np.arange(BLOCK_DAYS)).ravel()
    return replace(
        sums,
        days=np.arange(at.size),
        judged=sums.judged[at],
        sums={name: each[:, at] for name, each in sums.sums.items()},
    )


def earning(sums: DaySums, more: float) -> DaySums:
    """Return *sums* with *more* return a day."""
    returns = sums.sums["return"]
    return replace(sums, sums={**sums.sums, "return": np.array([returns[0] + more, returns[1]])})


def found_after(reference: DaySums, run: DaySums, level: float, name: str = "") -> int | None:
    """Return after how many days a measure (any, or *name*) was outside; None if none was."""
    measures = drift_of(("", reference), ("", run), level).measures
    return min(
        (
            look.days
            for each in measures
            for look in each.looks
            if look.is_outside and name in {"", each.name}
        ),
        default=None,
    )


def share(count: int, of: int) -> str:
    """Return a share with its binomial error."""
    rate = count / of
    return f"{rate:.2%} ± {math.sqrt(max(rate, 1 / of) * (1 - rate) / of):.2%}"


def lines(sums: DaySums, years: int = YEARS, level: float = LEVEL) -> Iterator[str]:
    """Yield the rate of false alarms, and the delays."""
    rng = np.random.default_rng(0)
    alarms = [found_after(sums, drawn(sums, rng), level) for _ in range(years)]
    known = sum(each is not None for each in alarms)
    yield f"{years:,} years like the backtest, {level:.0%} stated: {share(known, years)} outside"
    alarms = [found_after(drawn(sums, rng), drawn(sums, rng), level) for _ in range(years)]
    known = sum(each is not None for each in alarms)
    yield f"with a backtest of a year that is drawn too: {share(known, years)} outside"
    returns = sums.sums["return"][0]
    for sharpe in SHARPES:
        edge = sharpe * returns.std(ddof=1) / math.sqrt(YEAR_DAYS)
        backtest = earning(sums, edge - returns.mean())
        halved = earning(backtest, -edge / 2)
        delays = [
            found_after(backtest, drawn(halved, rng), level, "return") for _ in range(years // 4)
        ]
        late = [delay for delay in delays if delay is not None]
        median = f", after {np.median(late):.0f} days in the median" if late else ""
        yield (
            f"half of a Sharpe ratio of {sharpe} gone: found within a year in "
            f"{share(len(late), len(delays))}{median}"
        )


class Update(NamedTuple):
    """A daily update: the bars of the day, its CPU seconds, and what it says."""

    bars: int
    cpu_s: float
    sentence: str


def update(path: Path, wanted: str) -> Update:
    """Return a daily update of a run that is compared with itself."""
    with Reader.open(path) as reader:
        columns = RunColumns(reader, reader.find(wanted))
        sums = read_days(columns)
        sequences = columns.rows.decided()["sequence"]
        # The steps of the newest day are read again, as if it had just ended.
        a_day = int(sequences.size / (sums.days[-1] + 1 - sums.days[0]))
        last = replace(sums, sequence=sums.sequence - a_day)
        short = replace(
            last,
            days=sums.days[:-1],
            judged=sums.judged[:-1],
            sums={name: each[:, :-1] for name, each in sums.sums.items()},
        )
        began = time.process_time()
        state = drift_of(("", sums), ("", read_days(columns, short)), LEVEL).state
        spent = time.process_time() - began
    return Update(a_day, spent, state.sentence)


if __name__ == "__main__":
    database, wanted = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "last"
    with Reader.open(database) as opened:
        days = read_days(RunColumns(opened, opened.find(wanted)))
    for text in lines(days):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    day = update(database, wanted)
    sys.stdout.write(f"a day's update of {day.bars:,} bars: {day.cpu_s:.3f} CPU s\n")
