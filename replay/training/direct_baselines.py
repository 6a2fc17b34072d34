"""What a direct forecast of many steps must beat: yesterday's same hour, ridge, a boosted tree.

Each takes a task of ``direct_data`` and returns what answers origins. Ridge and tree see one
variable's own past, and all variables share one fit, in units of the training part; what the window
ends on is taken from it before and added to the answer after (Zeng et al., 2023, "NLinear"). Fitted
on the training part; whatever is chosen is chosen on the validation part.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from scipy.linalg import eigh

from tracepaper.replay.training.boosting import import_lightgbm
from tracepaper.replay.training.direct_data import (
    CHUNK,
    Answer,
    DirectModel,
    Rows,
    Task,
    TaskPart,
    Values,
    errors,
)
from tracepaper.strategies.errors import ConfigInvalid

RIDGE_DAYS: Final = (4, 7, 14)
"""Days of each variable's own past that the ridge is tried with."""
PENALTIES: Final = tuple(10.0**power for power in range(-4, 3))
"""Ridge penalties, per row, in units of the variables' variance."""
_TREE_DAYS: Final = 7
_TREE_ROWS: Final = 400_000
"""Rows that the tree is fitted on at most: origins are thinned evenly to keep to it."""
_TREE: Final[dict[str, Any]] = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
    "deterministic": True,
    "num_threads": 1,
    "verbosity": -1,
}


def seasonal(task: Task) -> DirectModel:
    """Return the last day, repeated."""
    ahead = np.arange(task.horizon) % task.day_rows - task.day_rows
    return DirectModel(lambda origins: task.values[origins[:, None] + ahead], 0, "the last day")


def ridge(task: Task) -> DirectModel:
    """Return the closed-form ridge whose window and penalty have the least validation MSE."""
    best: tuple[float, DirectModel] | None = None
    for days in RIDGE_DAYS:
        window = days * task.day_rows
        if window + task.horizon > task.training.stop:
            continue
        for penalty, weights in _ridges(task, window):
            answer = _linear(task, window, weights)
            mse = errors(task, task.origins(task.validation, window), answer).mse
            if best is None or mse < best[0]:
                chosen = f"{window} rows, penalty {penalty:g}"
                best = mse, DirectModel(answer, weights.size, chosen)
    if best is None:
        raise ConfigInvalid(
            f"horizon {task.horizon} leaves the ridge no training window; give a shorter one."
        )
    return best[1]


def _ridges(task: Task, window: int) -> list[tuple[float, Values]]:
    """Return weights [window, horizon] for each penalty, from one eigendecomposition."""
    gram, cross, count = np.zeros((window, window)), np.zeros((window, task.horizon)), 0
    origins = task.origins(task.training, window)
    for start in range(0, len(origins), CHUNK):
        seen, answers = task.windows(origins[start : start + CHUNK], window)
        last = seen[:, -1:]
        # [window, row, variable] -> [window * variable, row]
        rows = (seen - last).transpose(0, 2, 1).reshape(-1, window)
        gram += rows.T @ rows
        cross += rows.T @ (answers - last).transpose(0, 2, 1).reshape(-1, task.horizon)
        count += len(rows)
    powers, axes = eigh(gram / count)
    turned = axes.T @ (cross / count)
    return [(size, axes @ (turned / (powers + size)[:, None])) for size in PENALTIES]


def _linear(task: Task, window: int, weights: Values) -> Answer:
    def answer(origins: Rows) -> Values:
        seen = task.windows(origins, window).seen
        last = seen[:, -1:]
        found: Values = np.einsum("nwv,wh->nhv", seen - last, weights) + last
        return found

    return answer


def tree(task: Task, *, seed: int = 0) -> DirectModel:
    """Return a boosted tree on lags of each variable, the step ahead and the hour (LightGBM).

    One tree for all steps and variables; its rounds are chosen on the validation part. Raises
    ``ConfigInvalid`` where LightGBM is missing.
    """
    lightgbm = import_lightgbm()
    training, validation = (
        lightgbm.Dataset(*_tree_rows(task, _thinned(task, part)))
        for part in (task.training, task.validation)
    )
    validation.set_reference(training)
    stop = lightgbm.early_stopping(30, verbose=False)
    model = lightgbm.train(
        _TREE | {"seed": seed}, training, 600, valid_sets=[validation], callbacks=[stop]
    )

    def answer(origins: Rows) -> Values:
        rows, _ = _tree_rows(task, origins)
        shape = (len(origins), task.horizon, task.values.shape[1])
        moves = np.asarray(model.predict(rows, num_threads=1)).reshape(shape)
        found: Values = moves + task.values[origins - 1][:, None]
        return found

    leaves = sum(found["num_leaves"] for found in model.dump_model()["tree_info"])
    return DirectModel(answer, leaves, f"{model.best_iteration} rounds")


def _thinned(task: Task, part: TaskPart) -> Rows:
    """Return evenly spaced origins of *part*, with at most ``_TREE_ROWS`` rows of the tree."""
    origins = task.origins(part, _TREE_DAYS * task.day_rows)
    rows = len(origins) * task.horizon * task.values.shape[1]
    return origins[:: -(-rows // _TREE_ROWS)]


def _tree_rows(task: Task, origins: Rows) -> tuple[Values, Values]:
    """Return rows of lags [origin * step * variable, column] and the moves they are to tell.

    Values are less the newest one: the same hour of the last days, what came shortly before, means
    and spread; then the newest one, the step, the hour that is forecast, and the variable.
    """
    day, steps, variables = task.day_rows, task.horizon, task.values.shape[1]
    window = _TREE_DAYS * day
    seen, answers = task.windows(origins, window)
    last = seen[:, -1:]  # [origin, 1, variable]
    seen = seen - last
    ahead = np.arange(steps) % day
    columns = [seen[:, window - days * day + ahead] for days in range(1, _TREE_DAYS + 1)]
    shape = columns[0].shape  # [origin, step, variable]
    still = [seen[:, -1 - lag] for lag in range(1, min(13, window))]
    still += [
        seen[:, -day:].mean(axis=1),
        seen.mean(axis=1),
        seen[:, -day:].std(axis=1),
        last[:, 0],
    ]
    columns += [np.broadcast_to(column[:, None], shape) for column in still]
    hours = task.marks[origins[:, None] + np.arange(steps), 0]
    columns.append(np.broadcast_to(hours[:, :, None], shape))
    columns.append(np.broadcast_to(np.arange(steps, dtype=np.float64)[:, None], shape))
    columns.append(np.broadcast_to(np.arange(variables, dtype=np.float64), shape))
    return np.stack(columns, axis=-1).reshape(-1, len(columns)), (answers - last).ravel()
