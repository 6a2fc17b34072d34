"""Fit a network: AdamW, warm-up and cosine, clipping, early stop a head at a time, resumable.

A head here is one (task, horizon) pair. Its validation gain over the best constant answer is
measured in units of that loss's noise (``scores``), so that the longest horizon weighs no more
than any other. A head that has stopped improving no longer pulls at the trunk. Judged and kept are
weights averaged over the last steps, those of the best mean over heads.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tracepaper.replay.training.losses import (
    LOSSES,
    Constants,
    TaskWeights,
    as_float32,
    averaged,
    constants,
    elementwise,
    head_scores,
)
from tracepaper.replay.training.samples import Batch, Chunks, Samples
from tracepaper.strategies.errors import CheckpointMismatch, InvariantBroken
from tracepaper.strategies.features_rolling import Array


@dataclass(frozen=True)
class FitOptions:
    """How long and how to fit; ``accumulate`` batches make one step of the optimiser."""

    steps: int = 400
    batch: int = 2
    length: int = 4_352
    accumulate: int = 1
    learning_rate: float = 8e-4
    weight_decay: float = 0.1
    warm_up: float = 0.05
    clip: float = 1.0
    validate_every: int = 50
    patience: int = 5
    average: float = 0.985  # decay of the averaged weights; 0 keeps the last ones
    learned_weights: bool = False
    price_weight: float = 0.5  # of return and direction, where volatility has 1
    uniqueness_power: float = 0.5  # and these by (first horizon ÷ horizon) ** power
    seed: int = 0


@dataclass
class Progress:
    """What is known while fitting, for the caller's ``observe``."""

    step: int = 0
    steps: int = 0
    training_loss: float = math.nan
    losses: list[list[float]] = field(default_factory=list)  # validation, [task][horizon]
    scores: list[list[float]] = field(default_factory=list)  # gains in units of noise
    best_step: int = 0
    best_score: float = -math.inf
    validated: bool = False
    improved: bool = False


def learning_rate(step: int, options: FitOptions) -> float:
    """Return the rate at *step*: a straight warm-up, then a cosine to a hundredth of the peak."""
    warm = max(round(options.warm_up * options.steps), 1)
    if step < warm:
        return options.learning_rate * (step + 1) / warm
    done = min((step - warm) / max(options.steps - warm, 1), 1.0)
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def loss_shares(horizons: Sequence[int], options: FitOptions) -> Array:
    """Return [task, horizon] weights of the losses in their sum.

    Labels that overlap h-fold say as much as 1 ÷ h of their number about where the price goes;
    of volatility, which lasts, each says nearly all. And the trunk overfits by way of the price.
    """
    ratio = horizons[0] / np.asarray(horizons, dtype=np.float64)
    share = options.price_weight * ratio**options.uniqueness_power
    even = np.ones_like(share)
    return np.stack([share if each.is_price else even for each in LOSSES.values()])


STATE_NAME: Final = "training.pt"


Observe = Callable[[Progress], None]


class Fit:
    """One fitting of *network*; ``run`` goes from the last saved state to the end.

    ``best`` holds the weights of the best mean score so far.
    """

    def __init__(
        self,
        network: nn.Module,
        training: Sequence[Samples],
        validation: Sequence[Samples],
        options: FitOptions,
        *,
        context: int,
        folder: Path,
        levels: tuple[float, ...] = (),
    ) -> None:
        self.options = options
        self.progress = Progress(steps=options.steps)
        self.best: dict[str, Tensor] = {}
        self._network = network
        self._validation = validation
        self._context = context
        self._folder = folder
        self._levels = levels
        self._constant: Constants = constants(training, seed=options.seed)
        self._chunks = Chunks(
            training, length=options.length, batch=options.batch, seed=options.seed
        )
        horizons = training[0].weights.shape[1]
        self._weights = TaskWeights(horizons, learned=options.learned_weights)
        self._shares = loss_shares(training[0].horizons, options)
        self._averaged = AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(options.average), use_buffers=True
        )
        self._best_heads = np.full((len(LOSSES), horizons), -np.inf)
        self._waited = np.zeros((len(LOSSES), horizons), dtype=np.int64)
        self._optimiser = torch.optim.AdamW(_groups(network, self._weights, options))
        self._device = next(network.parameters()).device
        self._weights.to(self._device)

    def run(self, observe: Observe) -> None:
        """Fit until the steps are done or every head has stopped; raise on a non-finite loss."""
        progress, options = self.progress, self.options
        # A resumed fit must not draw the dropout of its first steps again.
        torch.manual_seed(options.seed + progress.step)
        batches = self._chunks.stream(progress.step * options.accumulate)
        while progress.step < options.steps and self._active().any():
            progress.training_loss = self._step(batches)
            progress.step += 1
            last = progress.step == options.steps
            progress.validated = last or progress.step % options.validate_every == 0
            if progress.validated:
                self._validate()
                self.save()
            observe(progress)

    def _step(self, batches: Iterator[Batch]) -> float:
        """Make one step of the optimiser; return its mean loss over active heads."""
        self._network.train()
        rate = learning_rate(self.progress.step, self.options)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        active = torch.from_numpy(self._active() * self._shares).float().to(self._device)
        self._optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(self.options.accumulate):
            each = self._losses(next(batches))
            loss = self._weights(each, active) / self.options.accumulate
            loss.backward()
            total += float((each.detach() * active).sum() / active.sum())
        if not math.isfinite(total):
            raise InvariantBroken(
                f"The training loss became {total} at step {self.progress.step};"
                " lower --learning-rate."
            )
        nn.utils.clip_grad_norm_(self._network.parameters(), self.options.clip)
        self._optimiser.step()
        self._averaged.update_parameters(self._network)
        return total / self.options.accumulate

    def _losses(self, batch: Batch) -> Tensor:
        """Return [task, horizon] losses of one batch; bfloat16 on CUDA, float32 on the CPU."""
        device = self._device
        weights = batch.weights.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = self._network(batch.values.to(device))
        each = elementwise(
            as_float32(outputs),
            {name: label.to(device) for name, label in batch.labels.items()},
            weights > 0,
            self._levels,
        )
        return averaged(each, weights)

    def _active(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray(self._waited < self.options.patience)

    def _validate(self) -> None:
        """Score every head, stop those that no longer improve, keep the best weights."""
        judged = self._averaged.module
        losses, scores = head_scores(judged, self._validation, self._constant, self._context)
        self._learn(scores)
        mean = float(scores.mean())
        progress = self.progress
        progress.losses, progress.scores = losses.tolist(), scores.tolist()
        progress.improved = mean > progress.best_score
        if progress.improved:
            progress.best_score, progress.best_step = mean, progress.step
            self.best = {
                name: tensor.detach().cpu().clone() for name, tensor in judged.state_dict().items()
            }

    def _learn(self, scores: Array) -> None:
        better = scores > self._best_heads
        stopped = self._waited >= self.options.patience
        self._best_heads = np.maximum(self._best_heads, scores)
        # What has stopped stays so: its loss no longer counts, and a late gain would be luck.
        self._waited = np.where(better & ~stopped, 0, self._waited + 1)

    def save(self) -> None:
        """Write the whole state beside the checkpoint, by a rename, so that it is never half."""
        self._folder.mkdir(parents=True, exist_ok=True)
        state = {
            "options": asdict(self.options),
            "progress": asdict(self.progress),
            "network": self._network.state_dict(),
            "averaged": self._averaged.state_dict(),
            "best": self.best,
            "weights": self._weights.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "best_heads": self._best_heads.tolist(),
            "waited": self._waited.tolist(),
        }
        part = self._folder / (STATE_NAME + ".part")
        torch.save(state, part)
        part.replace(self._folder / STATE_NAME)

    def resume(self) -> bool:
        """Take up the state in the folder, if there is one; raise where its options differ."""
        path = self._folder / STATE_NAME
        if not path.exists():
            return False
        try:
            # Anything but the archive that ``save`` writes would be taken for an old pickle.
            state = torch.load(path, weights_only=True) if zipfile.is_zipfile(path) else {}
        except (pickle.UnpicklingError, RuntimeError):
            state = {}
        if "options" not in state:
            raise CheckpointMismatch(
                f"{path} is not the state of a fit; delete it and start again."
            )
        if state["options"] != asdict(self.options):
            raise CheckpointMismatch(
                f"{path.name} was written with other options; repeat those, or delete it."
            )
        self.progress = Progress(**state["progress"])
        self.best = state["best"]
        self._network.load_state_dict(state["network"])
        self._averaged.load_state_dict(state["averaged"])
        self._weights.load_state_dict(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._best_heads = np.array(state["best_heads"])
        self._waited = np.array(state["waited"])
        return True


def _groups(network: nn.Module, weights: TaskWeights, options: FitOptions) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay; biases, norms and task weights do not."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    others += [p for p in weights.parameters() if p.requires_grad]
    return [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
