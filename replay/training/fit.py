"""Fit a network: AdamW, warm-up and cosine, clipping, early stop a head at a time, resumable.

A head here is one (task, horizon) pair. Its validation gain over the best constant answer is
measured in units of that loss's noise (``scores``), so that the longest horizon weighs no more
than any other. A head that has stopped improving no longer pulls at the trunk. Judged and kept are
weights averaged over the last steps, those of the best mean over heads. A network that answers
every row learns from long chunks, any other from single windows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tracepaper.replay.training import state as states
from tracepaper.replay.training.entropy_loss import confidence_loss, traced, trained_confidence
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
from tracepaper.replay.training.windows import SingleWindows
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, InvariantBroken
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network


@dataclass(frozen=True)
class FitOptions:
    """How long and how to fit; ``accumulate`` batches make one step of the optimiser.

    A batch is *batch* chunks of *length* bars, or *windows* single windows.
    """

    steps: int = 400
    batch: int = 2
    length: int = 4_352
    windows: int = 64
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
    entropy_weight: float = 0.0  # of the correlation of confidence with loss; 0 leaves it out
    precision: str = "auto"  # of products: bfloat16 on CUDA, float32 on the CPU; or one of both
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted with, with one sentence each."""
        for name in _COUNTS:
            if (value := getattr(self, name)) < 1:
                raise ConfigInvalid(f"training.{name} is {value}; it must be at least 1.")
        for name in _SHARES:
            if not 0.0 <= (value := getattr(self, name)) < 1.0:
                raise ConfigInvalid(
                    f"training.{name} is {value}; it must be at least 0 and below 1."
                )
        if not 0.0 < self.learning_rate < math.inf or not self.clip > 0.0:
            raise ConfigInvalid("training.learning_rate and training.clip must be above 0.")
        if not 0.0 <= self.entropy_weight < math.inf:
            raise ConfigInvalid("training.entropy_weight must be a number of at least 0.")
        if self.precision not in PRECISIONS:
            raise ConfigInvalid(
                f"training.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}."
            )


_COUNTS: Final = (
    "steps", "batch", "length", "windows", "accumulate", "validate_every", "patience"
)  # fmt: skip
_SHARES: Final = ("warm_up", "average")
PRECISIONS: Final = ("auto", "float32", "bfloat16")


@dataclass
class Progress:
    """What is known while fitting, for the caller's ``observe``."""

    step: int = 0
    steps: int = 0
    bars: int = 0  # labelled bars that were learnt from, those of every epoch counted
    training_loss: float = math.nan
    losses: list[list[float]] = field(default_factory=list)  # validation, [task][horizon]
    scores: list[list[float]] = field(default_factory=list)  # gains in units of noise
    best_step: int = 0
    best_score: float = -math.inf
    validated: bool = False
    improved: bool = False
    stopped: str = ""  # why it ended before its time, in words; empty where it did not


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


Observe = Callable[[Progress], None]


class Fit:
    """One fitting of *network*; ``run`` goes from the last saved state to the end.

    ``best`` holds the weights of the best mean score so far. *about* says what is fitted to what: a
    state of something else is not taken up.
    """

    def __init__(
        self,
        network: Network,
        training: Sequence[Samples],
        validation: Sequence[Samples],
        options: FitOptions,
        *,
        folder: Path,
        about: Mapping[str, Any],
        levels: tuple[float, ...] = (),
    ) -> None:
        if options.entropy_weight:
            traced(network)
        self.options = options
        self.progress = Progress(steps=options.steps)
        self.best: dict[str, Tensor] = {}
        self._network = network
        self._validation = validation
        self._path = folder / states.STATE_NAME
        self._about = {"options": asdict(options), **about}
        self._levels = levels
        self._constant: Constants = constants(training, seed=options.seed)
        self._batches = batches_for(network, training, options)
        horizons = training[0].weights.shape[1]
        self._weights = TaskWeights(horizons, learned=options.learned_weights)
        self._shares = loss_shares(training[0].horizons, options)
        # Buffers are copied: an average would truncate those that hold whole numbers.
        self._averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.average))
        self._best_heads = np.full((len(LOSSES), horizons), -np.inf)
        self._waited = np.zeros((len(LOSSES), horizons), dtype=np.int64)
        self._optimiser = torch.optim.AdamW(_groups(network, self._weights, options))
        self._device = network.device
        self._weights.to(self._device)
        self._random: dict[str, Tensor] = {}

    def run(self, observe: Observe) -> None:
        """Fit until the steps are done or every head has stopped.

        Where a loss or a gradient is not finite it stops and says so in ``progress.stopped``; the
        weights of that step are thrown away. Raises ``InvariantBroken`` if none were good before.
        """
        progress, options = self.progress, self.options
        self._draw_on()
        batches = self._batches.stream(progress.step * options.accumulate)
        while progress.step < options.steps and self._active().any():
            loss = self._step(batches)
            if not math.isfinite(loss):
                self._stop(loss)
                observe(progress)
                return
            progress.training_loss = loss
            progress.step += 1
            last = progress.step == options.steps
            progress.validated = last or progress.step % options.validate_every == 0
            if progress.validated:
                self._validate()
                self.save()
            observe(progress)

    def _draw_on(self) -> None:
        """Draw dropout from where the saved state left off, or from the seed."""
        if "cpu" not in self._random:
            torch.manual_seed(self.options.seed)
            return
        torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"], self._device)

    def _stop(self, loss: float) -> None:
        step, best = self.progress.step + 1, self.progress.best_step
        reason = f"The training loss or its gradient was not finite ({loss}) at step {step}"
        if not self.best:
            raise InvariantBroken(f"{reason}, and no weights were good before; lower the rate.")
        self.progress.stopped = f"{reason}; kept are the weights of step {best}."

    def _step(self, batches: Iterator[Batch]) -> float:
        """Make one step of the optimiser; return its mean loss over active heads.

        Where that or the gradient is not finite the weights stay as they were.
        """
        self._network.train()
        rate = learning_rate(self.progress.step, self.options)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        active = torch.from_numpy(self._active() * self._shares).float().to(self._device)
        self._optimiser.zero_grad(set_to_none=True)
        total, bars = 0.0, 0
        for _ in range(self.options.accumulate):
            batch = next(batches)
            bars += int((batch.weights > 0).any(-1).sum())
            total += self._learn_from(batch, active)
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self.options.clip)
        if not (math.isfinite(total) and math.isfinite(norm)):
            return math.nan if math.isfinite(total) else total
        self._optimiser.step()
        self._averaged.update_parameters(self._network)
        self.progress.bars += bars
        return total / self.options.accumulate

    def _learn_from(self, batch: Batch, active: Tensor) -> float:
        """Add the gradient of one batch; return its mean loss over *active* heads.

        A batch is learnt from in pieces where the network asks for that: their gradients add up
        to the whole batch's.
        """
        pieces = self._pieces(batch)
        whole = batch.weights.sum((0, 1)).to(self._device)  # [horizon]
        total = 0.0
        for piece in pieces:
            each, wrong_where_sure = self._losses(piece, whole)
            # A learnt weight adds a term of its own to each piece: a share of it is one piece's.
            loss = self._weights(each * len(pieces), active) / len(pieces)
            loss = loss + self.options.entropy_weight * wrong_where_sure / len(pieces)
            (loss / self.options.accumulate).backward()
            total += float((each.detach() * active).sum() / active.sum())
        return total

    def _pieces(self, batch: Batch) -> list[Batch]:
        rows = self._network.rows_a_pass
        if rows is None or self._device.type != "cpu":
            return [batch]
        return batch.pieces(max(rows // batch.values.shape[1], 1))

    def _losses(self, batch: Batch, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Return [task, horizon] losses of one batch, a piece of one whose weights are *whole*.

        Beside them the correlation of confidence with loss, zero where it has no weight. Weights
        and losses are float32.
        """
        device, traces = self._device, None
        weights = batch.weights.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._is_half):
            rows, positions = batch.values.to(device), batch.positions.to(device)
            if self.options.entropy_weight:
                outputs, traces = traced(self._network).trace(rows, positions)
            else:
                outputs = self._network(rows, positions)
        outputs = outputs.map(lambda part: part[:, -weights.shape[1] :])  # a window's last bar
        each = elementwise(
            as_float32(outputs),
            {name: label.to(device) for name, label in batch.labels.items()},
            weights > 0,
            self._levels,
        )
        averages = averaged(each, weights, whole)
        if traces is None:
            return averages, averages.new_zeros(())
        sure = trained_confidence(traces, traced(self._network).mask)
        return averages, confidence_loss(sure[:, -weights.shape[1] :], each, weights)

    @property
    def _is_half(self) -> bool:
        """Whether products are taken in bfloat16."""
        if self.options.precision == "auto":
            return self._device.type == "cuda"
        return self.options.precision == "bfloat16"

    def _active(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.asarray(self._waited < self.options.patience)

    def _validate(self) -> None:
        """Score every head, stop those that no longer improve, keep the best weights."""
        judged = self._averaged.module
        assert isinstance(judged, Network)
        losses, scores = head_scores(judged, self._validation, self._constant)
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
        """Write the whole state beside the checkpoint; see ``state.write``."""
        optimiser = self._optimiser.state_dict()["state"]
        moments = {f"{at}/{name}": t for at, own in optimiser.items() for name, t in own.items()}
        random = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self._device)
        tensors = {
            **states.under("network", self._network.state_dict()),
            **states.under("averaged", self._averaged.state_dict()),
            **states.under("best", self.best),
            **states.under("weights", self._weights.state_dict()),
            **states.under("optimiser", moments),
            **states.under("random", random),
        }
        facts = {
            "about": self._about,
            "progress": asdict(self.progress),
            "best_heads": self._best_heads.tolist(),
            "waited": self._waited.tolist(),
        }
        states.write(self._path, tensors, facts)

    def resume(self) -> bool:
        """Take up the state in the folder, if there is one; raise where it is of another fit."""
        if not self._path.exists():
            return False
        tensors, facts = states.read(self._path)
        # What is compared went through JSON, in which tuples are lists.
        wanted = json.loads(json.dumps(self._about))
        for name in sorted({*wanted, *facts["about"]}):
            if facts["about"].get(name) != wanted.get(name):
                raise CheckpointMismatch(
                    f"{self._path} was written with other {name}; repeat those, or delete it."
                )
        self.progress = Progress(**facts["progress"])
        self.best = states.of("best", tensors)
        self._network.load_state_dict(states.of("network", tensors))
        self._averaged.load_state_dict(states.of("averaged", tensors))
        self._weights.load_state_dict(states.of("weights", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in states.of("optimiser", tensors).items():
            at, _, kind = name.partition("/")
            moments.setdefault(int(at), {})[kind] = tensor
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self._best_heads = np.array(facts["best_heads"])
        self._waited = np.array(facts["waited"])
        self._random = states.of("random", tensors)
        return True


def batches_for(
    network: Network, training: Sequence[Samples], options: FitOptions
) -> Chunks | SingleWindows:
    """Return what *network* learns from: chunks if it answers every row, else single windows."""
    if network.answers_every_row:
        return Chunks(training, length=options.length, batch=options.batch, seed=options.seed)
    window = network.config.receptive_field
    return SingleWindows(training, window=window, batch=options.windows, seed=options.seed)


def _groups(network: nn.Module, weights: TaskWeights, options: FitOptions) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay; biases, norms and task weights do not."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    others += [p for p in weights.parameters() if p.requires_grad]
    return [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
