"""Diagnosis of a failed ``verify``: code, configuration, model, strategy or record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from tracepaper.daemon.config.loading import Config, custom_classes, restore
from tracepaper.daemon.session.run_row import code_version, is_this_code
from tracepaper.replay.checks.compare import Difference
from tracepaper.storage.chain.verify import ChainProblem
from tracepaper.storage.database.chunks import StoredRun
from tracepaper.strategies.types.decisions import RunRow

UNDECLARED_INPUT: Final = (
    " decides by more than its bars and its declared state (`tracepaper lookahead` and `tracepaper "
    "recursive` find which), or a stored decision was changed"
)

_FORECAST_FIELDS: Final = (
    "mean_return",
    "stdev_return",
    "p_",
    "volatility",
    "explanation",
    "model_id",
)
_CAUSES: Final = (
    ("a stored event was changed", ("event", "accepted")),
    (
        "the weights, or a bar in the model's window, were changed",
        _FORECAST_FIELDS,
    ),
    (
        "a stored fill, order or account value was changed",
        ("account", "position", "fills", "orders", "ledger", "shadows", "state", "halted"),
    ),
)
"""The causes that the fields of the first differing step indicate, the surest first."""

_DECISION_FIELDS: Final = ("action", "target_quantity", "reason", "allowed", "refused_by")
_INPUT_FIELDS: Final = ("event", "accepted", "bars.", "events.")
_MODEL_FIELDS: Final = ("runs.model_id", "runs.model_sha256")
_CONFIG_FIELDS: Final = ("runs.config", "runs.config_sha256", "runs.strategy", "runs.interval_ms")


class Cause(StrEnum):
    """The part of a run that its differences come from."""

    CODE = "code"
    CONFIGURATION = "configuration"
    MODEL = "model"
    STRATEGY = "strategy"
    ENVIRONMENT = "environment"
    RECORD = "record"


class LikelyCause(NamedTuple):
    """The likeliest cause, a sentence about it, and whether no other is possible."""

    culprit: Cause  # its value is its name in JSON
    sentence: str
    sure: bool = True  # else a changed record is possible too

    @property
    def named(self) -> str:
        """The cause as a noun phrase."""
        return f"the {self.culprit}" if self.sure else f"the {self.culprit}, or the record,"


def diagnose(
    stored: StoredRun,
    differences: Sequence[Difference],
    chain_problem: ChainProblem | None,
    *,
    exact: bool,
) -> LikelyCause:
    """Return the likeliest cause of the *differences* between a run and its derivation.

    Without differences it is the problem of its chain. The record is ruled out only where code,
    environment and chain are intact.
    """
    if chain_problem is not None and not differences:
        return LikelyCause(Cause.RECORD, chain_problem.sentence.removesuffix("."))
    run, config = stored.run, restore(stored.run.config)
    row = {each.field: each for each in differences if each.field.startswith("runs.")}
    if (count := row.get("runs.step_count")) is not None:
        sentence = f"its row counts {count.first} steps, and {count.second} are stored"
        sentence += ": steps were removed or added, or the row was changed"
        return LikelyCause(Cause.RECORD, sentence)
    if not is_this_code(run.code_version):
        versions = f"code {run.code_version} made the run, and this is {code_version()}"
        return LikelyCause(
            Cause.CODE, f"{versions}, so a changed record cannot be ruled out", sure=False
        )
    is_chained = chain_problem is None
    steps = [each for each in differences if each.field not in row]
    if row:
        cause, sentence = _by_row(run, row, has_steps=bool(steps))
    else:
        cause, sentence = _by_steps(config, steps, exact=exact, is_chained=is_chained)
    sure = exact and is_chained and not sentence.endswith(UNDECLARED_INPUT)
    return LikelyCause(cause, sentence, cause is Cause.RECORD or sure)


def _by_row(run: RunRow, row: Mapping[str, Difference], *, has_steps: bool) -> tuple[Cause, str]:
    """Return the cause of a difference in the run's row."""
    if any(name in row for name in _CONFIG_FIELDS):
        return Cause.CONFIGURATION, "its configuration is not the one that its hash names"
    if any(name in row for name in _MODEL_FIELDS):
        return Cause.MODEL, f"the model is not {run.model_id}, which the run names"
    if (strategy := row.get("runs.strategy_sha256")) is None:
        return Cause.RECORD, "the run's row was changed"
    new_hash, old_hash = strategy.second[:12], strategy.first[:12]
    change = f"the strategy {run.strategy} was changed since"
    if not has_steps:
        change = f"every step follows, but the strategy {run.strategy} or the run's row was changed"
    return (
        Cause.STRATEGY,
        f"{change}: its source and files hash to {new_hash}, the run's to {old_hash}",
    )


def _by_steps(
    config: Config, steps: Sequence[Difference], *, exact: bool, is_chained: bool
) -> tuple[Cause, str]:
    """Return the cause by the fields of the first differing step."""
    names = " ".join(
        each.field for each in steps if each.open_time_ms == steps[0].open_time_ms
    ).split()
    judged = any(name.startswith((*_FORECAST_FIELDS, *_DECISION_FIELDS)) for name in names)
    if judged and not any(name.startswith(_INPUT_FIELDS) for name in names):
        if is_chained and (classes := custom_classes(config)):
            if {*classes} - {config.model.custom_class, config.features.custom_schema}:
                return Cause.STRATEGY, f"the strategy{UNDECLARED_INPUT}"
            return Cause.MODEL, f"the model{UNDECLARED_INPUT}"
        if not exact:  # another machine's rounding can explain it
            return Cause.ENVIRONMENT, f"the run was made elsewhere, or {_by_fields(names)}"
    return Cause.RECORD, _by_fields(names)


def _by_fields(names: Sequence[str]) -> str:
    for cause, fields in _CAUSES:
        if any(name.startswith(fields) for name in names):
            return cause
    return "a stored decision or gate was changed"
