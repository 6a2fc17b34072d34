"""Where a decision over several assets looked: which asset, which of its bars, and who sways whom.

The model that decided, as it is kept beside the database, is fed the stored bars of every symbol.
The rule is docs/several.md, P28.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Group, RenderableType

from tracepaper.replay.archive.times import iso
from tracepaper.replay.explain.asked import TypedMethod
from tracepaper.replay.explain.by_method import way_of
from tracepaper.replay.explain.recomputed import kept_forecaster, stored_forecast
from tracepaper.replay.explain.terminal import LOOKED, table_of
from tracepaper.replay.report.tables import bar_of
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import AttentionInvalid, DataInvalid
from tracepaper.strategies.forecasters.together import USUAL, TogetherForecaster
from tracepaper.strategies.networks.looked import Way
from tracepaper.strategies.together import SymbolAnswer
from tracepaper.strategies.types import Bar

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
    bar out. ``largest_difference`` compares the decided symbol's row with the stored shares, which
    are those of the usual rollout; ``residual_weight`` and ``start_layer`` are of this one.
    """

    symbol: str
    symbols: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    bars: int
    heaviest: tuple[HeavyToken, ...]
    largest_difference: float
    residual_weight: float = USUAL.residual_weight
    start_layer: int = USUAL.start_layer

    @property
    def row(self) -> tuple[float, ...]:
        """The decided symbol's shares, by ``symbols``."""
        return self.matrix[self.symbols.index(self.symbol)]


def influence(
    database: Path, run_id: str, sequence: int, asked: TypedMethod | None = None
) -> Influence:
    """Return where the decision looked, asked again of the model that decided.

    *asked* is a rollout by another residual, or without the layers below a start. Raises
    ``AttentionInvalid`` for another method or option, ``DataInvalid`` where it has no forecast, the
    run no longer has the bars or the model is not over several symbols, and ``CheckpointMismatch``
    where its checkpoint is gone.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        step = reader.step(run_id, sequence).step
        said, event = stored_forecast(run, step), step.event
        assert isinstance(event, Bar)
        _, forecaster = kept_forecaster(database, run, said.model_id)
        if not isinstance(forecaster, TogetherForecaster):
            raise DataInvalid(f"The model {said.model_id} sees one symbol; leave --full as it is.")
        for item in run.instruments:
            # The bars of a close are steps in a row, so others' may be stored after this one.
            until = sequence + len(run.instruments)
            bars = reader.bars(run_id, item.id, forecaster.context + 1, until=until)
            known = [bar for bar in bars if bar.open_time_ms <= event.open_time_ms]
            forecaster.warm(item.id, known)
    if why := forecaster.lacking:
        raise DataInvalid(f"Run {run_id} lacks what decision {sequence} looked back on: {why}.")
    symbol, symbols = event.instrument.partition(":")[2], forecaster.symbols
    way = Way() if asked is None else way_of(asked, Way())
    if way.method != "rollout":
        raise AttentionInvalid(
            f"A network over several symbols is explained by its rollout, not by {way.method}; "
            "leave --method out, or choose rollout."
        )
    close = forecaster.last_close(way.options)
    look = close.look
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
                int(close.positions[place % time]) * event.interval_ms,
                float(weights.ravel()[place]),
            )
            for place in order.tolist()
        ),
        float(np.abs(matrix[at] - SymbolAnswer.of(said).shares).max()),
        way.options.residual_weight,
        way.options.start_layer,
    )


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
    said = f"Its shares differ by at most {found.largest_difference:.1e} from those stored"
    residual, start = found.residual_weight, found.start_layer
    if (residual, start) == (USUAL.residual_weight, USUAL.start_layer):
        said += "."
    else:
        said += f"; these are of residual {residual:g} from layer {start} on."
    return Group(bars, matrix, said)
