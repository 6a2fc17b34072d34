"""The fit loop of every network: objective, policy, and a state that survives a kill.

The optimiser is AdamW with gradient clipping. A head is one (task, horizon) pair.

The rules are docs/models.md, L28.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tracepaper.replay.learning.losses import (
    CONSTANTS,
    LOSSES,
    averaged,
    confidence_loss,
    constants,
    elementwise,
    head_scores,
    titles,
    traced,
    trained_confidence,
)
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.windows import Batch, Epochs
from tracepaper.storage.covariates import write_whole
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, InvariantBroken
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.checks import GradientFlow, gradient_rows, gradient_warning


def use_threads(count: int) -> None:
    """Set the number of PyTorch threads; results repeat only for the same number."""
    torch.set_num_threads(count)


@dataclass(frozen=True)
class FitOptions:
    """Options of a fit; ``accumulate`` batches make one optimiser step.

    A batch is *batch* chunks of *length* bars, or *windows* single windows.
    """

    steps: Annotated[int, Meta(ge=1, description="Optimiser steps.")] = 400
    batch: Annotated[int, Meta(ge=1, description="Chunks per batch.")] = 2
    length: Annotated[int, Meta(ge=64, description="Bars per chunk.")] = 4_352
    windows: Annotated[
        int, Meta(ge=1, description="Windows per batch, for networks over whole windows.")
    ] = 64
    accumulate: Annotated[int, Meta(ge=1, description="Batches per step.")] = 1
    learning_rate: Annotated[float, Meta(gt=0, description="Peak learning rate.")] = 8e-4
    weight_decay: Annotated[float, Meta(ge=0, description="Weight decay of matrices.")] = 0.1
    warm_up: Annotated[
        float, Meta(ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    ] = 0.05
    clip: Annotated[float, Meta(gt=0, description="Largest norm of a gradient.")] = 1.0
    validate_every: Annotated[int, Meta(ge=1, description="Steps between validations.")] = 50
    patience: Annotated[
        int, Meta(ge=1, description="Validations without a better score, after which a head stops.")
    ] = 5
    average: Annotated[
        float, Meta(ge=0, lt=1, description="Decay of the averaged weights; 0 keeps the last.")
    ] = 0.985
    price_weight: Annotated[
        float,
        Meta(ge=0, description="Weight of return and direction; that of the volatility is 1."),
    ] = 0.5
    uniqueness_power: Annotated[
        float, Meta(description="Their weight by horizon: (first horizon / it) to this power.")
    ] = 0.5
    entropy_weight: Annotated[
        float, Meta(ge=0, description="Weight of confidence's correlation with loss; 0: none.")
    ] = 0.0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Meta(description="Precision of products: auto, float32 or bfloat16."),
    ] = "auto"
    seed: Annotated[int, Meta(ge=0, description="Random seed.")] = 0


@dataclass
class Progress:
    """The progress of a fit, for the caller's ``observe``."""

    step: int = 0
    steps: int = 0
    training_loss: float = math.nan
    score: float = math.nan  # of the last validation
    best_step: int = 0
    best_score: float = -math.inf
    validated: bool = False
    improved: bool = False
    stopped: str = ""  # why it ended early; empty if it did not
    gradients: dict[str, list[list[float]]] = field(default_factory=dict)
    """By part of the network, at each validation: [median gradient norm, weight norm]."""

    def gradients_section(self) -> dict[str, object]:
        """Return ``[gradients]`` of a card: a row for each part, and any warning."""
        warning = gradient_warning(self.gradients)
        note = {"warning": warning} if warning else {}
        return {"parts": gradient_rows(self.gradients), **note}

    @property
    def relative_gradients(self) -> dict[str, float]:
        """The newest gradient norm of each part over its weight norm."""
        newest = {part: each[-1] for part, each in self.gradients.items()}
        return {part: norm / (weights or 1.0) for part, (norm, weights) in newest.items()}

    @property
    def gradient_warning(self) -> str:
        """A sentence if a gradient vanished or exploded since the last validation, else empty."""
        return gradient_warning({part: each[-1:] for part, each in self.gradients.items()})


def learning_rate(step: int, options: FitOptions) -> float:
    """Return the rate at *step*: linear warm-up, then a cosine to a hundredth of the peak."""
    warm_up = max(round(options.warm_up * options.steps), 1)
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    done = min((step - warm_up) / max(options.steps - warm_up, 1), 1.0)
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def loss_shares(horizons: Sequence[int], options: FitOptions) -> Array:
    """Return [task, horizon] weights of the losses in their sum.

    Price losses weigh less at long horizons: labels of h bars overlap, so they have 1 ÷ h of their
    number of independent outcomes, and the trunk would overfit. Volatility persists, so its labels
    keep their weight.
    """
    ratio = horizons[0] / np.asarray(horizons, dtype=np.float64)
    share = options.price_weight * ratio**options.uniqueness_power
    even = np.ones_like(share)
    return np.stack([share if each.is_price else even for each in LOSSES.values()])


Observe = Callable[[Progress], None]


class Objective(ABC):
    """A network's training batches, loss and validation score."""

    network: Any
    """The module that is trained."""
    titles: str
    """The names of its losses, for a card."""
    constants: Mapping[str, float] = {}
    """The constants of its labels and losses, for a card."""

    @abstractmethod
    def batches(self, done: int) -> Iterator[Batch]:
        """Yield batches without end, after skipping the first *done*."""

    @abstractmethod
    def gradient(self, batch: Batch, /) -> float:
        """Add the gradient of *batch*; return its mean loss."""

    @abstractmethod
    def validate(self, network: nn.Module) -> float:
        """Return the validation score of *network*; higher is better."""

    def finished(self) -> bool:
        """Return whether training should stop."""
        return False

    def state(self) -> dict[str, Any]:
        """Return the tensors and plain values, except the network, that change in training."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""
        del state


@dataclass
class MeanLoss(Objective):
    """A single loss; the score is minus its mean on validation."""

    network: Any
    titles: str
    stream: Callable[[int], Iterator[Batch]]
    """The number of batches done → the batches after these, without end."""
    judged: Callable[[], Iterable[Batch]]
    """Returns the batches of the validation part."""
    loss: Callable[[Any, Batch], Tensor]
    """A network and a batch → the mean loss."""
    accumulate: int = 1
    constants: Mapping[str, float] = field(default_factory=dict)

    def batches(self, done: int) -> Iterator[Batch]:
        """Yield the batches after the first *done*."""
        return self.stream(done)

    def gradient(self, batch: Batch) -> float:
        """Add the gradient of *batch*; return its loss."""
        loss = self.loss(self.network, batch)
        torch.autograd.backward(loss / self.accumulate)
        return float(loss.detach())

    def validate(self, network: nn.Module) -> float:
        """Return minus the mean loss over the validation part."""
        network.eval()
        with torch.inference_mode():
            losses = [float(self.loss(network, batch)) for batch in self.judged()]
        return -sum(losses) / len(losses) if losses else 0.0


class Policy(NamedTuple):
    """How an objective is fitted: optimiser, schedule, validation and seed."""

    steps: int
    groups: Sequence[Mapping[str, Any]]  # parameters with their weight decay
    rate: Callable[[int], float]  # step → learning rate
    clip: float
    validate_every: int
    accumulate: int  # batches of a step
    averaged: AveragedModel  # is validated and kept
    seed: int  # of dropout
    patience: float = math.inf  # validations without a better score before the fit ends


class Fit:
    """A fit of an objective's network; ``run`` continues from the current state to the end.

    ``best`` holds the weights of the best score so far. The state is saved in *folder* with
    *about*, which identifies data and options: ``resume`` rejects a state with another *about*.
    """

    def __init__(
        self,
        objective: Objective,
        policy: Policy,
        *,
        folder: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.network: nn.Module = objective.network
        self.progress = Progress(steps=policy.steps)
        self.best: dict[str, Tensor] = {}
        self.objective = objective
        self._policy = policy
        self._optimiser = torch.optim.AdamW([dict(group) for group in policy.groups])
        self._random: dict[str, Tensor] = {}
        self._waited = 0
        self._flow = GradientFlow(self.network)
        self._path = None if folder is None else folder / STATE_NAME
        self._about = about or {}

    def run(self, observe: Observe) -> None:
        """Fit until the steps are done or nothing improves any more.

        A loss or gradient that is not finite ends the fit: ``progress.stopped`` has the reason, and
        the step is discarded. Raises ``InvariantBroken`` if no weights were validated before.
        """
        progress, policy = self.progress, self._policy
        self._set_random_state()
        batches = self.objective.batches(progress.step * policy.accumulate)
        while progress.step < policy.steps and not self.finished():
            loss = self._step(batches)
            if not math.isfinite(loss):
                self._stop(loss)
                observe(progress)
                return
            progress.training_loss = loss
            progress.step += 1
            last = progress.step == policy.steps
            progress.validated = last or progress.step % policy.validate_every == 0
            if progress.validated:
                self._validate()
                self.save()
            observe(progress)

    def _set_random_state(self) -> None:
        """Set the random state of dropout from the saved state, or from the seed."""
        if "cpu" not in self._random:
            torch.manual_seed(self._policy.seed)
            return
        torch.set_rng_state(self._random["cpu"])
        device = device_of(self.network)
        if "cuda" in self._random and device.type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"], device)

    def _stop(self, loss: float) -> None:
        step, best = self.progress.step + 1, self.progress.best_step
        at = self._flow.not_finite()
        place = f", first in {at}," if at else ""
        reason = f"The training loss or its gradient{place} was not finite ({loss}) at step {step}"
        if not self.best:
            raise InvariantBroken(
                f"{reason}, before the first validation; lower training.learning_rate."
            )
        self.progress.stopped = f"{reason}; kept are the weights of step {best}."

    def _step(self, batches: Iterator[Any]) -> float:
        """Make one optimiser step; return its mean loss.

        If loss or gradient is not finite, the weights do not change, and the result is not finite.
        """
        policy = self._policy
        self.network.train()
        for group in self._optimiser.param_groups:
            group["lr"] = policy.rate(self.progress.step)
        self._optimiser.zero_grad(set_to_none=True)
        total = sum(self.objective.gradient(next(batches)) for _ in range(policy.accumulate))
        self._flow.add()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), policy.clip)
        if not (math.isfinite(total) and math.isfinite(norm)):
            return math.nan if math.isfinite(total) else total
        self._optimiser.step()
        policy.averaged.update_parameters(self.network)
        return total / policy.accumulate

    def _validate(self) -> None:
        """Validate the average of the network; keep its weights if no earlier ones are better."""
        judged, progress = self._policy.averaged.module, self.progress
        progress.score = score = self.objective.validate(judged)
        # A restored state has its parts in another order, so the dictionary is rebuilt.
        progress.gradients = {
            part: [*progress.gradients.get(part, []), list(norms)]
            for part, norms in self._flow.medians().items()
        }
        progress.improved = score >= progress.best_score
        self._waited = 0 if progress.improved else self._waited + 1
        if progress.improved:
            progress.best_score, progress.best_step = score, progress.step
            self.best = {
                name: tensor.detach().cpu().clone() for name, tensor in judged.state_dict().items()
            }

    def finished(self) -> bool:
        """Return whether the objective is finished or patience has run out."""
        return self.objective.finished() or self._waited >= self._policy.patience

    def save(self) -> None:
        """Write the whole state into the folder, if there is one."""
        if self._path is None:
            return
        device = device_of(self.network)
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        write_state(
            self._path,
            {
                "about": self._about,
                "progress": asdict(self.progress),
                "waits": self._waited,
                "network": self.network.state_dict(),
                "best": self.best,
                "averaged": self._policy.averaged.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "objective": self.objective.state(),
                "random": random,
            },
        )

    def resume(self) -> bool:
        """Restore the state in the folder; return whether there is one.

        Raises ``CheckpointMismatch`` for the state of another fit.
        """
        if self._path is None or not self._path.exists():
            return False
        state = read_state(self._path)
        for name in sorted({*self._about, *state["about"]}):
            if state["about"].get(name) != self._about.get(name):
                raise CheckpointMismatch(
                    f"{self._path} was written with other {name}; use the same, or delete it."
                )
        self.progress = Progress(**state["progress"])
        self._waited, self.best, self._random = state["waits"], state["best"], state["random"]
        self.network.load_state_dict(state["network"])
        self._policy.averaged.load_state_dict(state["averaged"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.objective.restore(state["objective"])
        return True


def heads_fit(
    network: Network,
    training: Sequence[Samples],
    validation: Sequence[Samples],
    options: FitOptions,
    *,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> Fit:
    """Return the fit of a network's heads to the samples of single symbols."""
    heads = HeadLosses(network, training, validation, options)
    policy = policy_of(network, options)
    return Fit(heads, policy, folder=folder, about={"options": asdict(options), **(about or {})})


class HeadLosses(Objective):
    """The heads of a network over one symbol's bars; each learns until it no longer improves.

    A score is the validation gain over the best constant answer, in units of that loss's noise
    (``head_scores``), so that all horizons count alike. The loss of a head that has stopped
    improving no longer changes the trunk.
    """

    def __init__(
        self,
        network: Network,
        training: Sequence[Samples],
        validation: Sequence[Samples],
        options: FitOptions,
    ) -> None:
        if options.entropy_weight:
            traced(network)
        self.network: Network = network
        self.titles, self.constants = titles(network.given_heads), CONSTANTS
        self._options = options
        self._validation = validation
        self._levels = getattr(network.config, "quantiles", ())
        self._constant = constants(training, seed=options.seed)
        self._chunks = batches_for(network, training, options)
        horizons = training[0].weights.shape[1]
        self._shares = loss_shares(training[0].horizons, options)
        self._device = network.device
        self.best = np.full((len(LOSSES), horizons), -np.inf)
        self.waited = np.zeros((len(LOSSES), horizons), dtype=np.int64)

    def batches(self, done: int) -> Iterator[Batch]:
        """Yield the batches after the first *done*."""
        return self._chunks.stream(done)

    def gradient(self, batch: Batch) -> float:
        """Add the gradient of one batch; return its mean loss over active heads.

        If the network limits its rows per pass, the batch is processed in pieces, and their
        gradients add up to the batch's.
        """
        options = self._options
        active = torch.from_numpy(self.active() * self._shares).float().to(self._device)
        pieces = self._pieces(batch)
        total_weight = batch.weights.sum((0, 1)).to(self._device)  # [horizon]
        total = 0.0
        for piece in pieces:
            each, correlation = self._losses(piece, total_weight)
            loss = (each * active).sum() + options.entropy_weight * correlation / len(pieces)
            (loss / options.accumulate).backward()
            total += float((each.detach() * active).sum() / active.sum())
        return total

    def finished(self) -> bool:
        """Return whether every head has stopped."""
        return not self.active().any()

    def state(self) -> dict[str, Any]:
        """Return each head's best score and its validations without a better one."""
        return {"best": self.best.tolist(), "waited": self.waited.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""
        self.best, self.waited = np.array(state["best"]), np.array(state["waited"])

    def validate(self, network: nn.Module) -> float:
        """Score every head, and stop those that no longer improve; return the mean score."""
        assert isinstance(network, Network)
        scores = head_scores(network, self._validation, self._constant)
        self._update_patience(scores)
        return float(scores.mean())

    def _pieces(self, batch: Batch) -> list[Batch]:
        rows = self.network.rows_a_pass
        if rows is None or self._device.type != "cpu":
            return [batch]
        return batch.pieces(max(rows // batch.values.shape[1], 1))

    def _losses(self, batch: Batch, total_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses [task, horizon] and the correlation of confidence with loss.

        *total_weight* [horizon] is that of the whole batch, of which *batch* may be a piece. The
        correlation is zero if it has no weight in the options. Weights and losses are float32.
        """
        batch, reads = batch.to(self._device), None
        weights = batch.weights
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
            if self._options.entropy_weight:
                trace = traced(self.network).trace(batch.values, batch.positions)
                outputs, reads = trace.outputs, trace.reads
            else:
                outputs = self.network(batch.values, batch.positions)
        # Single windows have a weight for their last bar only.
        outputs = outputs.map(lambda part: part[:, -weights.shape[1] :].float())
        each = elementwise(outputs, batch.labels, weights > 0, self._levels)
        averages = averaged(each, weights, total_weight)
        if reads is None:
            return averages, averages.new_zeros(())
        confidence = trained_confidence(reads)
        return averages, confidence_loss(confidence[:, -weights.shape[1] :], each, weights)

    @property
    def _is_half(self) -> bool:
        if self._options.precision == "auto":
            return self._device.type == "cuda"
        return self._options.precision == "bfloat16"

    def active(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return whether each head still learns: [task, horizon]."""
        return np.asarray(self.waited < self._options.patience)

    def _update_patience(self, scores: Array) -> None:
        better = scores > self.best
        stopped = self.waited >= self._options.patience
        self.best = np.maximum(self.best, scores)
        # A stopped head stays stopped: its loss has no weight, so a late gain is luck.
        self.waited = np.where(better & ~stopped, 0, self.waited + 1)


def batches_for(network: Network, training: Sequence[Samples], options: FitOptions) -> Epochs:
    """Return the batches of *network*: chunks if it answers every row, else single windows."""
    if network.answers_every_row:
        length = min(options.length, max(each.stop - each.start for each in training))
        return Epochs(training, length=length, batch=options.batch, seed=options.seed)
    length = network.config.receptive_field
    return Epochs(training, length=length, batch=options.windows, seed=options.seed, last_row=True)


def policy_of(network: nn.Module, options: FitOptions) -> Policy:
    """Return the policy of *options*; weight decay applies to matrices, not to biases or norms."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    return Policy(
        options.steps,
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lambda step: learning_rate(step, options),
        clip=options.clip,
        validate_every=options.validate_every,
        accumulate=options.accumulate,
        # Buffers are copied, not averaged: an average would truncate integers.
        averaged=AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.average)),
        seed=options.seed,
    )


def device_of(network: nn.Module) -> torch.device:
    """Return the device of *network*."""
    return next(network.parameters()).device


def device_called(name: str) -> torch.device:
    """Return the device *name*; raise ``ConfigInvalid`` if it is unknown or missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid("No CUDA device was found; train with training.device=cpu.")
    if name not in ("cpu", "cuda"):
        raise ConfigInvalid(f"training.device is {name!r}; choose cpu or cuda.")
    return torch.device(name)


# --- the saved state of a fit
#
# The file is a hash and PyTorch's format. It is written to a temporary file, synced and renamed, so
# a kill leaves the old state or the new one. It is loaded without running code (weights_only).


STATE_NAME: Final = "training.state"


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write *state*, of tensors and plain values, to *path*, atomically.

    Raises ``OSError`` that names *path* if the disk is full; the old file stays.
    """
    content = BytesIO()
    torch.save(state, content)
    write_whole((hashlib.sha256(content.getbuffer()).digest(), content.getvalue()), path)


def read_state(path: Path) -> dict[str, Any]:
    """Return the state in *path*; raise ``CheckpointMismatch`` if its hash does not match."""
    content = path.read_bytes()
    if hashlib.sha256(content[_HASH_BYTES:]).digest() != content[:_HASH_BYTES]:
        raise CheckpointMismatch(f"{path} is not the state of a fit; delete it and start again.")
    state: dict[str, Any] = torch.load(
        BytesIO(content[_HASH_BYTES:]), map_location="cpu", weights_only=True
    )
    return state


_HASH_BYTES: Final = 32
