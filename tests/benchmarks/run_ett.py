"""Compare a network with published ETT tables: ``python tests/benchmarks/run_ett.py --help``.

The file has a date column and columns of numbers at even steps. Months of 30 days from its first
row: 12 to train on, 4 to validate, 4 to test. Each variable is centred and scaled by the training
months alone. Errors are over every test window, step and variable; what a window reads may lie
before the test months, as in the published code. Nothing is chosen on the test months. Beside the
network stand the last day repeated and a closed-form ridge on the same windows: to beat an old
network's row says little while ridge beats it too.

``informer`` is the architecture as published, smaller than its authors' and with its sampled keys
drawn once from the seed. ``flash`` is the default network's trunk on patches of a day, three
networks by their mean. Seeds differ: look at two before believing a difference of a hundredth.
``--recursive ROWS`` also rolls a network of so many rows on over its own forecasts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import ett as baselines
import typer
from ett_data import (
    DirectModel,
    Task,
    check_step,
    compared,
    errors,
    prepare,
    read_table,
    recursive,
)

from tracepaper.replay.bench.machine import machine_line
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
    model: DirectModel


def measure_ett(
    path: Path,
    network: str,
    *,
    horizon: int,
    univariate: bool = False,
    seed: int = 0,
    epochs: int | None = None,
    step: int = 0,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return test errors of *network*, of the last day repeated and of ridge on one file.

    *epochs* passes over the training part replace those of the network's recipe. With *step* the
    same network is also fitted to that many rows, and rolled on over its own forecasts.
    Raises ``ConfigInvalid`` for an unknown network, ``DataInvalid`` for a file of another form.
    """
    if network not in NETWORKS:
        raise ConfigInvalid(f"There is no network {network!r}; use {', '.join(NETWORKS)}.")
    require("lightgbm", "--network tree", network == "tree")
    table = read_table(path)
    task = prepare(path, table, horizon=horizon, univariate=univariate)
    if step:
        check_step(task, step)
    naive = _measured(task, lambda: baselines.seasonal(task))
    ridge = _measured(task, lambda: baselines.ridge(task))
    tell(f"seasonal naive MSE {naive.mse:.3f}, ridge MSE {ridge.mse:.3f}")

    made: Mapping[str, Callable[[Task], DirectModel]] = {
        "ridge": baselines.ridge,
        "tree": partial(baselines.tree, seed=seed),
    }
    fit = made.get(network) or partial(
        _fitted, network=network, seed=seed, epochs=epochs, tell=tell
    )
    own = ridge if fit is baselines.ridge else _measured(task, lambda: fit(task))
    rolled = {}
    if step:
        rolled = {"recursive": _rolled(task, own.model, fit(replace(task, horizon=step)), step)}
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
        "parameters": own.model.parameters,
        "chosen": own.model.chosen,
        "seasonal_naive": {"mse": naive.mse, "mae": naive.mae},
        "ridge": {"mse": ridge.mse, "mae": ridge.mae, "chosen": ridge.model.chosen},
        "mse_over_ridge": own.mse / ridge.mse,
        "verdict": _verdict(network, own, ridge),
        **rolled,
        "machine": machine_line(),
    }


def _fitted(
    task: Task, network: str, seed: int, epochs: int | None, tell: Callable[[str], None]
) -> DirectModel:
    def observe(epoch: baselines.Epoch) -> None:
        tell(
            f"network {epoch.member}, epoch {epoch.number} of at most {epoch.epochs}: "
            f"MSE in training {epoch.training_mse:.4f}, in validation {epoch.validation_mse:.4f}"
        )

    recipe = baselines.recipes(task, seed)[network]
    if epochs is not None:
        recipe = recipe._replace(options=replace(recipe.options, epochs=epochs))
    return baselines.fit(task, recipe, observe)


def _measured(task: Task, made: Callable[[], DirectModel]) -> Measured:
    """Return the errors over every test window of what *made* returns, and what both took."""
    wall, cpu = time.perf_counter(), time.process_time()
    fitted = made()
    found = errors(task, task.origins(task.test, 0), fitted.answer)
    return Measured(
        found.mse,
        found.mae,
        (time.perf_counter() - wall) / 60,
        (time.process_time() - cpu) / 60,
        fitted,
    )


def _rolled(task: Task, direct: DirectModel, short: DirectModel, step: int) -> dict[str, Any]:
    """Return the errors of *short*, rolled on in steps of *step* rows, beside those of *direct*."""
    answer, origins = recursive(short, task, step), task.origins(task.test, 0)
    rows = compared(task, origins, answer, direct.answer, step)
    [whole] = compared(task, origins, answer, direct.answer, task.horizon)
    verdict = "level with the direct forecast"
    if whole.error is not None and abs(whole.difference) > 2 * whole.error:
        verdict = f"{'better' if whole.difference < 0 else 'WORSE'} than the direct forecast"
    error = "" if whole.error is None else f" ± {whole.error:.4f}"
    return {
        "step": step,
        "chosen": short.chosen,
        "mse": whole.first,
        "verdict": f"recursive is {verdict} ({whole.difference:+.4f}{error} MSE)",
        "by_rows_ahead": {
            f"{at * step + 1} to {(at + 1) * step}": {
                "mse": one.first,
                "direct_mse": one.second,
                "difference": one.difference,
                "error": one.error,
            }
            for at, one in enumerate(rows)
        },
    }


def _verdict(network: str, own: Measured, ridge: Measured) -> str:
    if network == "ridge":
        return "ridge itself"
    side = "not above" if own.mse <= ridge.mse else "ABOVE"
    return f"{network} is {side} ridge ({own.mse:.4f} and {ridge.mse:.4f})"


def main(
    *,
    data: Annotated[Path, typer.Option(metavar="CSV", help="A date column, columns of numbers.")],
    network: Annotated[str, typer.Option(help="flash, informer, lstm, ridge or tree.")] = "flash",
    horizon: Annotated[int, typer.Option(min=1, help="Rows ahead: 24, 48, 96 or 168.")] = 24,
    univariate: Annotated[
        bool, typer.Option("--univariate", help="The last column alone.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and sampled keys.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes at most; the network's own number.")
    ] = None,
    recursive: Annotated[
        int, typer.Option(min=0, metavar="ROWS", help="Also in steps of so many, on its forecasts.")
    ] = 0,
) -> None:
    """Measure a network on the protocol of the ETT benchmarks, beside ridge and a naive answer."""
    figures = measure_ett(
        data,
        network,
        horizon=horizon,
        univariate=univariate,
        seed=seed,
        epochs=epochs,
        step=recursive,
        tell=lambda sentence: typer.echo(sentence, err=True),
    )
    sys.stdout.write(f"{json.dumps(figures, indent=2)}\n")


if __name__ == "__main__":
    typer.run(main)
