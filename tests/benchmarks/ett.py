"""The published electricity benchmark: direct forecasts of many steps, and their baselines.

The loss is the mean squared error in standard deviations of the training part. The averaged weights
are validated after each epoch, and the best are kept; the test part is never used. Everything runs
on the CPU, in one thread of the process from then on: these networks are too small for two, and a
seed gives one result.

Each function takes a task of ``ett_data`` and returns a ``DirectModel``, which forecasts from any
origins. The ridge sees one variable's own past, and all variables share one fit, in units of the
training part; the window's last value is subtracted before and added to the forecast after
(Zeng et al., 2023, "NLinear"). It is fitted on the training part and chosen on the validation part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import Final, NamedTuple

import numpy as np
import torch
from ett_data import (
    CHUNK,
    Answer,
    DirectModel,
    Rows,
    Task,
    Values,
    errors,
)
from published_networks import (
    DirectConfig,
    DirectFlash,
    PublishedInformer,
    PublishedInformerConfig,
)
from scipy.linalg import eigh
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from tracepaper.replay.learning.fit import Fit, Objective, Policy, Progress
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

_INFORMER_ROWS: Final = 96
"""The most rows that the Informer reads, unless it forecasts more: time grows with their square."""


@dataclass(frozen=True)
class DirectOptions:
    """How to fit: passes over the training part, windows a step, and when to stop."""

    epochs: int = 3
    batch: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    warm_up: int = 100
    clip: float = 1.0
    average: float = 0.998  # decay of the averaged weights
    patience: int = 2
    seed: int = 0


class DirectRecipe(NamedTuple):
    """A network for a task, untrained, how many rows it reads, and how it is fitted."""

    make: Callable[[], nn.Module]
    window: int
    options: DirectOptions
    members: int = 1
    """Networks that are fitted from seeds of their own; their forecasts are averaged."""


def recipes(task: Task, seed: int = 0) -> dict[str, DirectRecipe]:
    """Return the recipe of every network by its name; *seed* draws weights, order and keys."""
    days, horizon = task.day_rows, task.horizon
    direct = DirectConfig(window=14 * days, horizon=horizon, patch=days)
    read = max(min(2 * days, _INFORMER_ROWS), horizon)
    informer = PublishedInformerConfig(
        variables=task.values.shape[1],
        window=read,
        horizon=horizon,
        start=read,
        dim=64,
        heads=4,
        hidden=256,
        dropout=0.1,
        seed=seed,
    )
    return {
        "flash": DirectRecipe(
            lambda: DirectFlash(direct), direct.window, DirectOptions(epochs=2, seed=seed), 3
        ),
        "informer": DirectRecipe(
            lambda: PublishedInformer(informer),
            informer.window,
            DirectOptions(epochs=5, weight_decay=1e-2, seed=seed),
        ),
    }


class Epoch(NamedTuple):
    """The result of one pass over the training part, for the caller's ``observe``."""

    member: int
    number: int
    epochs: int
    training_mse: float
    validation_mse: float


def fit(task: Task, recipe: DirectRecipe, observe: Callable[[Epoch], None]) -> DirectModel:
    """Fit the networks of *recipe* to *task*; the model's forecast is the mean of theirs.

    Raises ``ConfigInvalid`` when no window fits the training part, ``DataInvalid`` on a loss that
    is not finite.
    """
    torch.set_num_threads(1)
    feed = _Feed(task, recipe.window)
    members = [_fit_member(task, recipe, feed, number, observe) for number in range(recipe.members)]
    parameters = sum(part.numel() for member in members for part in member.network.parameters())
    kept = ", ".join(f"{member.epoch} ({member.validation_mse:.4f})" for member in members)

    answers = [_answer(member.network, feed) for member in members]

    def answer(origins: Rows) -> Values:
        mean: Values = np.mean([each(origins) for each in answers], axis=0)
        return mean

    return DirectModel(answer, parameters, f"epoch {kept} by validation MSE")


class _FittedMember(NamedTuple):
    network: nn.Module
    epoch: int
    validation_mse: float


def _fit_member(
    task: Task, recipe: DirectRecipe, feed: _Feed, member: int, observe: Callable[[Epoch], None]
) -> _FittedMember:
    """Fit one network and return it with its best averaged weights."""
    options = recipe.options
    origins = torch.from_numpy(task.origins(task.training, recipe.window))
    steps = len(origins) // options.batch
    if steps < 1:
        raise ConfigInvalid(
            f"The training part holds {len(origins)} windows of {recipe.window} rows and horizon "
            f"{task.horizon}; give more rows or a shorter horizon."
        )
    torch.manual_seed(options.seed * recipe.members + member)
    learnt = _Steps(recipe.make(), task, recipe, feed, origins)
    fitted = Fit(learnt, _policy(learnt.network, options, steps))

    def each_step(progress: Progress) -> None:
        if progress.stopped:
            raise DataInvalid(progress.stopped)
        if progress.validated:
            number, mse = progress.step // steps, -progress.scores[0][0]
            observe(Epoch(member + 1, number, options.epochs, learnt.training_mse, mse))

    fitted.run(each_step)
    learnt.network.load_state_dict(fitted.best)
    return _FittedMember(
        learnt.network, fitted.progress.best_step // steps, -fitted.progress.best_score
    )


def _policy(network: nn.Module, options: DirectOptions, epoch_steps: int) -> Policy:
    """Return the policy of the fit: every weight decays, and buffers are averaged like weights."""
    steps = epoch_steps * options.epochs
    return Policy(
        steps,
        [{"params": list(network.parameters()), "weight_decay": options.weight_decay}],
        lambda step: options.learning_rate * _rate_share(step, options.warm_up, steps),
        clip=options.clip,
        validate_every=epoch_steps,
        averaged=AveragedModel(
            network, avg_fn=partial(_moving_average, decay=options.average), use_buffers=True
        ),
        patience=options.patience,
    )


class _Batch(NamedTuple):
    seen: Tensor  # [window, row, variable]
    marks: Tensor  # [window, row + horizon, mark]
    answers: Tensor  # [window, horizon, variable]


class _Steps(Objective[_Batch]):
    """Learns a table's next rows by their mean squared error; validated after each epoch."""

    def __init__(
        self, network: nn.Module, task: Task, recipe: DirectRecipe, feed: _Feed, origins: Tensor
    ) -> None:
        self.network = network
        self.training_mse = math.nan
        """Of the epoch that was validated last."""
        self._task = task
        self._options = recipe.options
        self._validation = task.origins(task.validation, recipe.window)
        self._feed = feed
        self._origins = origins
        self._losses: list[float] = []
        self._epoch = 1

    def batches(self, done: int) -> Iterator[_Batch]:
        """Yield the batches after *done* others, epoch after epoch."""
        epochs = (_batches(self._origins, self._options.batch) for _ in count())
        return map(self._feed, islice(chain.from_iterable(epochs), done, None))

    def gradient(self, batch: _Batch) -> tuple[float, int]:
        """Add the gradient of *batch*; return its loss, and its windows."""
        loss = functional.mse_loss(self.network(batch.seen, batch.marks), batch.answers)
        loss.backward()
        self._losses.append(self._finite(float(loss.detach())))
        return self._losses[-1], len(batch.seen)

    def validate(self, network: nn.Module, progress: Progress) -> float:
        """Return the mean squared error over the validation part, below 0."""
        self.training_mse = sum(self._losses) / len(self._losses)
        self._losses.clear()
        score = -self._finite(
            errors(self._task, self._validation, _answer(network, self._feed)).mse
        )
        self._epoch += 1
        progress.scores = [[score]]
        return score

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise DataInvalid(f"The loss of epoch {self._epoch} is not finite; check the file.")
        return loss


class _Feed:
    """Origins → their windows as tensors."""

    def __init__(self, task: Task, window: int) -> None:
        self._values = torch.from_numpy(task.values).float()
        self._marks = torch.from_numpy(task.marks).float()
        self._seen = torch.arange(-window, 0)
        self._ahead = torch.arange(task.horizon)

    def __call__(self, origins: Tensor) -> _Batch:
        at = origins[:, None]
        both = torch.cat((self._seen, self._ahead))
        seen, answers = self._values[at + self._seen], self._values[at + self._ahead]
        return _Batch(seen, self._marks[at + both], answers)


def _batches(origins: Tensor, size: int) -> Iterator[Tensor]:
    """Yield *origins* in random order, whole batches alone."""
    order = origins[torch.randperm(len(origins))]
    yield from order[: len(order) // size * size].split(size)


def _moving_average(
    average: Tensor, current: Tensor, count: Tensor | int, *, decay: float
) -> Tensor:
    """Return the next moving average; its memory is short at first, so that it does not lag."""
    if not current.is_floating_point():
        return current  # whole numbers, such as sampled keys, have no average
    return average.lerp(current, 1.0 - min(decay, (int(count) + 1) / (int(count) + 10)))


def _rate_share(step: int, warm_up: int, steps: int) -> float:
    """Return the share of the peak rate at *step*: a straight warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(warm_up, 1))
    return warm * 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))


def _answer(network: nn.Module, feed: _Feed) -> Answer:
    def answer(origins: Rows) -> Values:
        network.eval()
        batch = feed(torch.from_numpy(origins))
        with torch.inference_mode():
            forecast: Values = network(batch.seen, batch.marks).double().numpy()
        return forecast

    return answer


RIDGE_DAYS: Final = (4, 7, 14)
"""Days of each variable's own past that the ridge is tried with."""
PENALTIES: Final = tuple(10.0**power for power in range(-4, 3))
"""Ridge penalties, per row, in units of the variables' variance."""


def seasonal(task: Task) -> DirectModel:
    """Return the model that repeats the last day."""
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
        forecast: Values = np.einsum("nwv,wh->nhv", seen - last, weights) + last
        return forecast

    return answer
