"""How to fit: options, the rate and the weights that follow from them, and what is known so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

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
    return np.stack([share, share, np.ones_like(share)])
