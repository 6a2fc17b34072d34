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
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import ett as baselines
import typer
from ett_data import DirectModel, Task, errors, prepare, read_table

from tracepaper.replay.bench.machine import machine_line
from tracepaper.strategies.errors import ConfigInvalid

NETWORKS: Final = ("flash", "informer")


def measure_ett(
    path: Path,
    network: str,
    *,
    horizon: int,
    seed: int = 0,
    epochs: int | None = None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return test errors of *network*, of the last day repeated and of ridge on one file.

    *epochs* passes over the training part replace those of the network's recipe. Raises
    ``ConfigInvalid`` for an unknown network, ``DataInvalid`` for a file of another form.
    """
    if network not in NETWORKS:
        raise ConfigInvalid(f"There is no network {network!r}; use {', '.join(NETWORKS)}.")
    task = prepare(path, read_table(path), horizon=horizon)
    naive, ridge = (_measured(task, of(task)) for of in (baselines.seasonal, baselines.ridge))
    tell(f"seasonal naive MSE {naive['mse']:.3f}, ridge MSE {ridge['mse']:.3f}")
    recipe = baselines.recipes(task, seed)[network]
    if epochs is not None:
        recipe = recipe._replace(options=replace(recipe.options, epochs=epochs))

    def observe(epoch: baselines.Epoch) -> None:
        tell(
            f"network {epoch.member}, epoch {epoch.number} of at most {epoch.epochs}: "
            f"MSE in training {epoch.training_mse:.4f}, in validation {epoch.validation_mse:.4f}"
        )

    own = _measured(task, baselines.fit(task, recipe, observe))
    return {
        "network": network,
        "horizon": horizon,
        "variables": task.values.shape[1],
        "test_windows": len(task.origins(task.test, 0)),
        "seed": seed,
        **own,
        "seasonal_naive": naive,
        "ridge": ridge,
        "mse_over_ridge": own["mse"] / ridge["mse"],
        "machine": machine_line(),
    }


def _measured(task: Task, model: DirectModel) -> dict[str, Any]:
    """Return the errors of *model* over every test window, its size and what was chosen."""
    found = errors(task, task.origins(task.test, 0), model.answer)
    return found._asdict() | {"parameters": model.parameters, "chosen": model.chosen}


def main(
    *,
    data: Annotated[Path, typer.Option(metavar="CSV", help="A date column, columns of numbers.")],
    network: Annotated[str, typer.Option(help="flash or informer.")] = "flash",
    horizon: Annotated[int, typer.Option(min=1, help="Rows ahead: 24, 48, 96 or 168.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and sampled keys.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes at most; the network's own number.")
    ] = None,
) -> None:
    """Measure a network on the protocol of the ETT benchmarks, beside ridge and a naive answer."""
    tell = lambda sentence: typer.echo(sentence, err=True)  # noqa: E731
    figures = measure_ett(data, network, horizon=horizon, seed=seed, epochs=epochs, tell=tell)
    sys.stdout.write(f"{json.dumps(figures, indent=2)}\n")


if __name__ == "__main__":
    typer.run(main)
