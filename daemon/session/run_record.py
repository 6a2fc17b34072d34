"""The row a run is opened with, and which earlier run a start continues."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Final

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.build import code_version, libraries, strategy_sha256
from tracepaper.daemon.session.models import computing
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Instrument, ModelChange, Run, RunKind

OF_THE_PLACE: Final = (
    "code_version",
    "device",
    "dtype",
    "threads",
    "backend",
    "torch_version",
    "instruction_set",
    "libraries",
)
"""Fields of a run, and of each of its starts, that say where and by which code it was made."""


def describe_run(
    config: Config,
    instruments: Sequence[Instrument],
    forecaster: Forecaster | None,
    *,
    kind: RunKind,
    started_at_ms: int,
    period_start_ms: int,
    parent_run_id: str | None = None,
    warnings: Iterable[str] = (),
) -> Run:
    """Return the row of a new run; its id is random, so that no two databases share one."""
    torch_version, instruction_set = computing(forecaster)
    return Run(
        run_id=secrets.token_hex(8),
        kind=kind,
        started_at_ms=started_at_ms,
        parent_run_id=parent_run_id,
        period_start_ms=period_start_ms,
        instruments=tuple(instruments),
        interval_ms=config.market.interval_ms,
        config=config.canonical_json(),
        config_sha256=config.sha256(),
        code_version=code_version(),
        strategy=config.strategy.name,
        strategy_sha256=strategy_sha256(config),
        model_id="" if forecaster is None else forecaster.model_id,
        model_sha256="" if forecaster is None else forecaster.model_sha256,
        path="" if forecaster is None else forecaster.path,
        device="" if forecaster is None else forecaster.device,
        dtype="" if forecaster is None else forecaster.dtype,
        threads=0 if forecaster is None else forecaster.threads,
        backend="" if forecaster is None else forecaster.backend,
        warnings=tuple(warnings),
        torch_version=torch_version,
        instruction_set=instruction_set,
        libraries=libraries(),
    )


def started(
    forecaster: Forecaster | None,
    *,
    warm_from: tuple[tuple[str, int], ...],
    market_ms: int,
) -> ModelChange:
    """Return the event that says: the process started, and its model was warmed like this."""
    torch_version, instruction_set = computing(forecaster)
    return ModelChange(
        "" if forecaster is None else forecaster.model_id,
        "" if forecaster is None else forecaster.model_sha256,
        code_version(),
        "" if forecaster is None else forecaster.path,
        "" if forecaster is None else forecaster.device,
        "" if forecaster is None else forecaster.dtype,
        0 if forecaster is None else forecaster.threads,
        warm_from,
        market_ms,
        market_ms,
        backend="" if forecaster is None else forecaster.backend,
        torch_version=torch_version,
        instruction_set=instruction_set,
        libraries=libraries(),
    )


def continues(run: Run, config: Config, forecaster: Forecaster | None) -> bool:
    """Return whether a start with *config* goes on with *run* rather than opening another."""
    return (
        run.config_sha256 == config.sha256()
        and run.code_version == code_version()
        and run.strategy_sha256 == strategy_sha256(config)
        and run.model_sha256 == ("" if forecaster is None else forecaster.model_sha256)
    )
