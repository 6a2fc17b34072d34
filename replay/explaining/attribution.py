"""Why one decision: what was stored, and on request its attribution bar by bar, recomputed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table

from tracepaper.daemon.config import restore
from tracepaper.daemon.models import forecaster_of
from tracepaper.replay.importers.times import iso
from tracepaper.replay.summary import bar_of, reading
from tracepaper.storage import checkpoints
from tracepaper.storage.reader import Reader, resolve
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.forecasters.streaming import Attribution, StreamingForecaster
from tracepaper.strategies.types import BLOCK_BARS, Bar

BARS_SHOWN: Final = 16


@dataclass(frozen=True)
class FullAttribution:
    """Where one decision looked, bar by bar (oldest first); weights sum to 1 within ``l1_error``.

    ``largest_bucket_difference`` compares the sums over 64-bar blocks with what was stored.
    """

    open_time_ms: tuple[int, ...]
    close: tuple[float, ...]
    weights: tuple[float, ...]
    l1_error: float
    largest_bucket_difference: float


def locate(decision: str, database: Path | None) -> tuple[Path, str, int]:
    """Return (database, run id, sequence) of ``RUN:SEQUENCE``, where RUN may be ``FILE#RUN``."""
    run, separator, sequence = decision.rpartition(":")
    if not separator or not sequence.isdigit():
        raise ConfigInvalid(f"{decision!r} is no decision; write RUN:SEQUENCE, say last:6000.")
    located = resolve(database, run)
    return located.path, located.run_id, int(sequence)


def stored_document(database: Path, run_id: str, sequence: int) -> dict[str, Any]:
    """Return the decision, its gates and its buckets as plain values."""
    with reading(database) as db:
        key = (run_id, sequence)
        decision = db.execute(
            "SELECT * FROM v_decisions WHERE run_id = ? AND sequence = ?", key
        ).fetchone()
        if decision is None:
            raise DataInvalid(
                f"Run {run_id} has no decision {sequence}; `tracepaper audit decisions` lists them."
            )
        return {
            "decision": dict(decision),
            "gates": [
                dict(row)
                for row in db.execute(
                    "SELECT * FROM v_gates WHERE run_id = ? AND sequence = ?", key
                )
            ],
            "buckets": [
                dict(row)
                for row in db.execute(
                    "SELECT * FROM v_explanations WHERE run_id = ? AND sequence = ?", key
                )
            ],
        }


def recompute(database: Path, run_id: str, sequence: int) -> FullAttribution:
    """Warm the run's own model with the stored bars up to the decision, and look back bar by bar.

    Raises ``DataInvalid`` where the decision has no model, or the run no longer has its bars.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        step = reader.step(run_id, sequence).step
        if not run.model_id or not isinstance(step.event, Bar) or step.decision is None:
            raise DataInvalid(
                f"Step {sequence} of run {run_id} has no model to look into; choose a decision "
                "of an attention run."
            )
        forecaster = forecaster_of(
            checkpoints.kept_folder(database, run.model_id), restore(run.config), path="step"
        )
        past = [
            bar
            for bar in reader.bars(run_id, step.event.instrument)
            if bar.open_time_ms <= step.event.open_time_ms
        ][-forecaster.context :]
    if not isinstance(forecaster, StreamingForecaster):
        raise DataInvalid("This model keeps no ring to look back through; read the stored row.")
    if len(past) < forecaster.context:
        raise DataInvalid(
            f"Run {run_id} holds {len(past)} bars up to decision {sequence}, and its model looks "
            f"back on {forecaster.context}; choose a later decision."
        )
    forecaster.warm(step.event.instrument, past)
    attribution = forecaster.explain(step.event.instrument)
    closes = {bar.open_time_ms: bar.close for bar in past}
    scale = 10 ** next(
        item.price_decimals for item in run.instruments if item.id == step.event.instrument
    )
    return FullAttribution(
        attribution.open_time_ms,
        tuple(closes[time] / scale for time in attribution.open_time_ms),
        attribution.weights,
        attribution.l1_error,
        _difference(database, run_id, sequence, attribution, step.event.interval_ms),
    )


def _difference(
    database: Path, run_id: str, sequence: int, attribution: Attribution, interval_ms: int
) -> float:
    """Return the largest difference between a stored bucket and the sum of its bars' weights."""
    block_ms = BLOCK_BARS * interval_ms
    sums: dict[int, float] = {}
    for time, weight in zip(attribution.open_time_ms, attribution.weights, strict=True):
        sums[time // block_ms] = sums.get(time // block_ms, 0.0) + weight
    largest = 0.0
    for row in stored_document(database, run_id, sequence)["buckets"]:
        if row["from_open_time_ms"] is not None and row["bucket"] != "older":
            block = row["from_open_time_ms"] // block_ms
            largest = max(largest, abs(row["weight"] - sums.get(block, 0.0)))
    return largest


def show_full(full: FullAttribution) -> RenderableType:
    """Return a table of the heaviest bars, with the price they closed at."""
    table = Table(
        title=f"Bar by bar: the {BARS_SHOWN} heaviest of {len(full.weights):,}",
        title_justify="left",
        title_style="bold",
        box=None,
    )
    for name in ("bar", "age", "close", "weight", ""):
        table.add_column(name, justify="left" if name in ("bar", "") else "right")
    order = sorted(range(len(full.weights)), key=lambda place: -full.weights[place])[:BARS_SHOWN]
    most = full.weights[order[0]]
    newest = len(full.weights) - 1
    for place in sorted(order, reverse=True):
        table.add_row(
            iso(full.open_time_ms[place]),
            str(newest - place),
            f"{full.close[place]:,g}",
            f"{full.weights[place]:.4f}",
            f"[cyan]{bar_of(full.weights[place] / most)}[/]",
        )
    note = (
        f"weights sum to 1 within {full.l1_error:.1e}; the stored buckets differ by at most "
        f"{full.largest_bucket_difference:.1e}"
    )
    return Group(table, note)
