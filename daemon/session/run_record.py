"""The row a run is opened with: what decides and computes it; and which run a start continues."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ORDERBOOK
from tracepaper.daemon.engine.rules import CHANGES
from tracepaper.daemon.session.models import computing, further_libraries
from tracepaper.daemon.session.orderbook import checkpoint_sha256
from tracepaper.daemon.session.sources import class_sha256
from tracepaper.daemon.session.user_class import user_class
from tracepaper.daemon.session.vectors import kept_vectors_of, vectors_kept_as
from tracepaper.strategies.calendar import Sessions, unpacked
from tracepaper.strategies.errors import DataInvalid
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
NO_MODEL: Final = {
    "model_id": "",
    "model_sha256": "",
    "mode": "",
    "device": "",
    "dtype": "",
    "threads": 0,
    "backend": "",
}
"""Fields of the same two that a forecaster has under the same names, where there is none."""


def describe_run(  # noqa: PLR0913 - the fields of a run
    config: Config,
    instruments: Sequence[Instrument],
    forecaster: Forecaster | None,
    *,
    kind: RunKind,
    started_at_ms: int,
    period_start_ms: int,
    parent_run_id: str | None = None,
    warnings: Iterable[str] = (),
    sessions: Sessions | None = None,
    sees_account: bool = False,
) -> Run:
    """Return the row of a new run; its id is random, so that no two databases share one."""
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
        strategy=config.strategy.name,
        gate_horizon=config.gate.horizon,
        strategy_sha256=strategy_sha256(config),
        warnings=tuple(warnings),
        sees_account=sees_account,
        rules=len(CHANGES),
        **_computed_by(forecaster),
        **_counted_by(sessions),
    )


def _counted_by(sessions: Sessions | None) -> dict[str, Any]:
    """Return the fields that say which sessions are counted, and keep them."""
    if sessions is None:
        return {}
    return {
        "calendar": sessions.name,
        "calendar_version": sessions.version,
        "calendar_sha256": sessions.sha256,
        "sessions": sessions.packed(),
    }


def sessions_of(run: Run) -> Sessions | None:
    """Return the sessions that *run* was opened with; None where every interval is counted.

    Raises ``DataInvalid`` where they are not those that it names.
    """
    if run.sessions is None:
        return None
    sessions = unpacked(run.sessions)
    named = run.calendar, run.calendar_version, run.calendar_sha256
    if named != (sessions.name, sessions.version, sessions.sha256):
        raise DataInvalid(
            f"The sessions stored with run {run.run_id} are not those that it names; restore a "
            "backup."
        )
    return sessions


def start_event(
    forecaster: Forecaster | None,
    *,
    warm_from: tuple[tuple[str, int], ...],
    market_ms: int,
) -> ModelChange:
    """Return the event that says: the process started, and its model was warmed like this."""
    return ModelChange(
        warm_from=warm_from, market_ms=market_ms, seen_ms=market_ms, **_computed_by(forecaster)
    )


def _computed_by(forecaster: Forecaster | None) -> dict[str, Any]:
    """Return the fields that say which model, code and libraries compute, and on what."""
    torch_version, instruction_set = computing(forecaster)
    model = {
        name: empty if forecaster is None else getattr(forecaster, name)
        for name, empty in NO_MODEL.items()
    }
    return {
        **model,
        "code_version": code_version(),
        "torch_version": torch_version,
        "instruction_set": instruction_set,
        "libraries": _libraries_with(forecaster),
    }


def continues(
    run: Run, config: Config, forecaster: Forecaster | None, *, model_sha256: str
) -> bool:
    """Return whether a start with *config* goes on with *run* rather than opening another.

    *model_sha256* is of the model with which the run goes on: it may have been promoted in it.
    """
    return (
        run.config_sha256 == config.sha256()
        and run.code_version == code_version()
        and run.strategy_sha256 == strategy_sha256(config)
        and model_sha256 == ("" if forecaster is None else forecaster.model_sha256)
        and kept_vectors_of(run.libraries) == vectors_kept_as(forecaster)
    )


def strategy_sha256(config: Config) -> str:
    """Return the id of a user's class, by its sources, or of a strategy's own checkpoint.

    Empty for every other built-in strategy.
    """
    name = config.strategy.name
    if name == ORDERBOOK:
        return checkpoint_sha256(config)
    return class_sha256(user_class(name)) if ":" in name else ""


def _libraries_with(forecaster: Forecaster | None) -> str:
    """Return ``libraries`` with what else computes for this forecaster."""
    if not (further := further_libraries(forecaster)):
        return libraries()
    return json.dumps({**json.loads(libraries()), **further}, sort_keys=True)


@cache
def libraries() -> str:
    """Return the versions of what computes besides torch, as JSON with sorted keys."""
    found = {
        "machine": platform.machine(),
        "numpy": importlib.metadata.version("numpy"),
        "python": platform.python_version(),
    }
    return json.dumps(found, sort_keys=True)


@cache
def code_version() -> str:
    """Return the installed version with a hash of tracepaper's sources, so that an edit shows."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in ("daemon", "replay", "storage", "strategies"):
        for source in sorted((root / package).rglob("*.py")):
            digest.update(str(source.relative_to(root)).encode())
            digest.update(source.read_bytes())
    return f"{importlib.metadata.version('tracepaper')}+{digest.hexdigest()[:12]}"
