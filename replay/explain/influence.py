"""Where a decision over several assets looked: which asset, which of its bars, and who sways whom.

The strategy is made again from the run's configuration and fed the stored bars of every symbol.
The rule is docs/several.md, P28.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.console import Group, RenderableType

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.together import checkpoint_sha256, make_together
from tracepaper.replay.archive.times import iso
from tracepaper.replay.explain.stored import StoredDecision
from tracepaper.replay.explain.terminal import LOOKED, table_of
from tracepaper.replay.report.tables import bar_of
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.types import Bar, Run

if TYPE_CHECKING:
    from tracepaper.strategies.forecasters.together import TogetherStrategy

HEAVIEST: Final = 12
"""Past bars of any asset that are named."""


@dataclass(frozen=True)
class HeavyToken:
    """One bar of one asset, and the weight that it holds."""

    symbol: str
    open_time_ms: int
    weight: float


@dataclass(frozen=True)
class Influence:
    """Where the decided symbol looked, and how much of where each looked is of each other.

    Each row of ``matrix``, of a decided asset over all, sums to 1. ``heaviest`` leaves the decided
    bar out. ``largest_difference`` compares the decided symbol's row with the noted shares.
    """

    symbol: str
    symbols: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    bars: int
    heaviest: tuple[HeavyToken, ...]
    largest_difference: float

    @property
    def row(self) -> tuple[float, ...]:
        """The decided symbol's shares, by ``symbols``."""
        return self.matrix[self.symbols.index(self.symbol)]


def influence(database: Path, run_id: str, sequence: int, stored: StoredDecision) -> Influence:
    """Return where the decision looked, asked again of the run's own checkpoint.

    Raises ``DataInvalid`` where it noted no share or the run no longer has the bars, and
    ``CheckpointMismatch`` where the checkpoint is another one now.
    """
    if not (shares := stored.shares):
        raise DataInvalid(
            f"Decision {sequence} of run {run_id} asked no network: it was between two decisions, "
            "or held; choose one with notes."
        )
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        strategy = _made_again(run)
        event = reader.step(run_id, sequence).step.event
        assert isinstance(event, Bar)
        for item in run.instruments:
            # The bars of a close are steps in a row, so others' may be stored after this one.
            until = sequence + len(run.instruments)
            bars = reader.bars(run_id, item.id, strategy.warmup + 1, until=until)
            for bar in [b for b in bars if b.open_time_ms <= event.open_time_ms]:
                strategy.observe(bar)
    held = strategy.held()
    if isinstance(held, str):
        raise DataInvalid(f"Run {run_id} lacks what decision {sequence} looked back on: {held}.")
    symbol, symbols = event.instrument.partition(":")[2], strategy.symbols
    look = strategy.look(held)
    at = symbols.index(symbol)
    matrix = look.influence.double().numpy()
    weights = look.weights[at].double().numpy().copy()  # [asset, time]
    weights[at, -1] = 0.0
    order = np.argsort(-weights.ravel(), kind="stable")[:HEAVIEST]
    time = weights.shape[1]
    return Influence(
        symbol,
        symbols,
        tuple(tuple(row) for row in matrix.tolist()),
        time,
        tuple(
            HeavyToken(
                symbols[place // time],
                (held.first + place % time) * event.interval_ms,
                float(weights.ravel()[place]),
            )
            for place in order.tolist()
        ),
        max(abs(float(matrix[at, symbols.index(name)]) - one) for name, one in shares.items()),
    )


def _made_again(run: Run) -> TogetherStrategy:
    config = restore(run.config)
    if (found := checkpoint_sha256(config)) != run.strategy_sha256:
        raise CheckpointMismatch(
            f"The checkpoint {config.strategy.options.get('checkpoint')} is {found[:12]} now, and "
            f"{run.strategy_sha256[:12]} decided; restore it."
        )
    return make_together(config)


# ---------------------------------------------------------------- for a terminal


def show_influence(found: Influence) -> RenderableType:
    """Return the decided symbol's heaviest bars, and the matrix of all."""
    bars = table_of(
        f"Where {found.symbol} looked, over {found.bars:,} bars of each asset ({LOOKED})",
        (("asset", False), ("bar", False), ("weight", True), ("", False)),
    )
    most = found.heaviest[0].weight or 1.0
    for one in found.heaviest:
        bars.add_row(
            one.symbol,
            iso(one.open_time_ms),
            f"{one.weight:.4f}",
            f"[cyan]{bar_of(one.weight / most)}[/]",
        )
    matrix = table_of(
        "Influence: the share of each asset (column) in where each looked (row)",
        (("", False), *((symbol, True) for symbol in found.symbols)),
    )
    for symbol, row in zip(found.symbols, found.matrix, strict=True):
        matrix.add_row(symbol, *(f"{share:.3f}" for share in row))
    said = f"Its shares differ by at most {found.largest_difference:.1e} from those noted."
    return Group(bars, matrix, said)
