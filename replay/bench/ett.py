"""``bench ett``: one network on the ETT benchmarks' protocol, beside a naive answer and ridge.

The protocol is in ``replay/training/direct_data.py``: parts of 12, 4 and 4 months, z-scores by the
training part, every test window, errors over all variables. Published figures were taken so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from tracepaper.replay.bench.machine import machine_line
from tracepaper.replay.training import direct_baselines as baselines
from tracepaper.replay.training.direct_data import Fitted, Task, errors, prepare, read_table
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require

FITTED: Final = ("flash", "informer", "lstm")
NETWORKS: Final = (*FITTED, "ridge", "tree")


class Measured(NamedTuple):
    """Test errors of one answer, and what it cost."""

    mse: float
    mae: float
    minutes: float
    cpu_minutes: float
    parameters: int
    chosen: str


def measure(
    path: Path,
    network: str,
    *,
    horizon: int,
    univariate: bool = False,
    seed: int = 0,
    epochs: int | None = None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return test errors of *network*, of the last day repeated and of ridge on one file.

    *epochs* passes over the training part replace those of the network's recipe.
    Raises ``ConfigInvalid`` for an unknown network, ``DataInvalid`` for a file of another form.
    """
    if network not in NETWORKS:
        raise ConfigInvalid(f"There is no network {network!r}; use {', '.join(NETWORKS)}.")
    require("lightgbm", "--network tree", network == "tree")
    table = read_table(path)
    task = prepare(path, table, horizon=horizon, univariate=univariate)
    naive = _measured(task, lambda: baselines.seasonal(task))
    ridge = _measured(task, lambda: baselines.ridge(task))
    tell(f"seasonal naive MSE {naive.mse:.3f}, ridge MSE {ridge.mse:.3f}")
    if network == "ridge":
        own = ridge
    elif network == "tree":
        own = _measured(task, lambda: baselines.tree(task, seed=seed))
    else:
        own = _measured(task, lambda: _fitted(task, network, seed, epochs, tell))
    return {
        "network": network,
        "horizon": horizon,
        "variables": task.values.shape[1],
        "test_windows": len(task.origins(task.test, 0)),
        "seed": seed,
        "mse": own.mse,
        "mae": own.mae,
        "minutes": own.minutes,
        "cpu_minutes": own.cpu_minutes,
        "parameters": own.parameters,
        "chosen": own.chosen,
        "seasonal_naive": {"mse": naive.mse, "mae": naive.mae},
        "ridge": {"mse": ridge.mse, "mae": ridge.mae, "chosen": ridge.chosen},
        "mse_over_ridge": own.mse / ridge.mse,
        "verdict": _verdict(network, own, ridge),
        "machine": machine_line(),
    }


def _fitted(
    task: Task, network: str, seed: int, epochs: int | None, tell: Callable[[str], None]
) -> Fitted:
    from tracepaper.replay.training.direct_fit import Epoch, fit, recipes

    def observe(epoch: Epoch) -> None:
        tell(
            f"network {epoch.member}, epoch {epoch.number} of at most {epoch.epochs}: "
            f"MSE in training {epoch.training_mse:.4f}, in validation {epoch.validation_mse:.4f}"
        )

    recipe = recipes(task, seed)[network]
    if epochs is not None:
        recipe = recipe._replace(options=replace(recipe.options, epochs=epochs))
    return fit(task, recipe, observe)


def _measured(task: Task, made: Callable[[], Fitted]) -> Measured:
    """Return the errors over every test window of what *made* returns, and what both took."""
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = made()
    found = errors(task, task.origins(task.test, 0), fitted.answer)
    return Measured(
        found.mse,
        found.mae,
        (time.perf_counter() - wall) / 60,
        (time.process_time() - cpu) / 60,
        fitted.parameters,
        fitted.chosen,
    )


def _verdict(network: str, own: Measured, ridge: Measured) -> str:
    if network == "ridge":
        return "ridge itself"
    side = "not above" if own.mse <= ridge.mse else "ABOVE"
    return f"{network} is {side} ridge ({own.mse:.4f} and {ridge.mse:.4f})"
