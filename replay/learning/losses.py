"""The training losses of networks, and the entropy of their attention.

Scores are in units of the loss's noise: the standard error over calendar days of the loss of a
constant answer. The noise does not depend on the network, so a head's scores are comparable between
steps.

The rules are docs/models.md, L52.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional

from tracepaper.replay.learning.samples import FLAT_BAND, LABELS, NO_LABEL, Fields, Samples
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.replay.learning.windows import predict, thinned
from tracepaper.replay.report.metrics import standard_error
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.methods import trained_entropy
from tracepaper.strategies.attention.reads import row_confidence
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network, Outputs
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.types.decisions import DRAWDOWN_LEVELS, PATH_LEVELS, SHARES
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from tracepaper.strategies.attention.reads import Read


Labelled = Mapping[str, Tensor]
"""Each label's name → [batch, time, horizon]."""
Elementwise = Callable[[Outputs, Labelled, Sequence[float]], Tensor]
"""``(outputs, labels, levels of the quantiles) -> losses [batch, time, horizon]``."""


OfHead = Callable[[Tensor, Labelled], Tensor]


class Loss(NamedTuple):
    """The training loss and score of a task."""

    title: str
    function: Elementwise
    is_price: bool
    """Whether it is about the price's direction rather than its volatility; see ``loss_shares``."""


CONSTANTS: Final = {"flat_band": FLAT_BAND, "variance_floor": VARIANCE_FLOOR}
"""The constants of the labels of bars."""


class AuxiliaryLoss(NamedTuple):
    """The loss of an auxiliary head, which is added to that of the task *to*.

    It is trained as long as that task, and has no score.
    """

    title: str
    to: str
    function: OfHead
    """``(output of the head, labels) -> losses [batch, time, horizon]``."""


def student_t_nll(value: Tensor, mean: Tensor, log_scale: Tensor, dof: Tensor) -> Tensor:
    """Return the negative log density of a located and scaled Student t, elementwise."""
    squared = ((value - mean) * torch.exp(-log_scale)) ** 2
    return (
        torch.lgamma(dof / 2)
        - torch.lgamma((dof + 1) / 2)
        + 0.5 * torch.log(dof * math.pi)
        + log_scale
        + 0.5 * (dof + 1) * torch.log1p(squared / dof)
    )


def qlike(variance: Tensor, log_forecast: Tensor) -> Tensor:
    """Return v ÷ f - log(v ÷ f) - 1, elementwise: zero for a perfect forecast (Patton, 2011)."""
    log_ratio = torch.log(torch.clamp(variance, min=VARIANCE_FLOOR)) - log_forecast
    return torch.exp(log_ratio) - log_ratio - 1


def pinball(value: Tensor, quantiles: Tensor, levels: Sequence[float]) -> Tensor:
    """Return the mean pinball loss of [.., level] *quantiles* (Koenker and Bassett, 1978)."""
    level = torch.tensor(levels, device=value.device)
    missed = value[..., None] - quantiles
    return torch.maximum(level * missed, (level - 1) * missed).mean(-1)


def lost_utility(value: Tensor, allocation: Tensor, cost: Tensor) -> Tensor:
    """Return the negative quadratic utility of holding *allocation* units of the scaled return.

    Each unit pays *cost*, in the unit of the return. At no cost the optimum is the mean over the
    mean square, which is Kelly's share; where the mean is below the cost it is 0.
    """
    gain = allocation * value - allocation.abs() * cost
    return 0.5 * gain * gain - gain


def return_loss(outputs: Outputs, labels: Labelled, levels: Sequence[float]) -> Tensor:
    """Return the return's loss, plus those of quantiles and allocation if the network has them."""
    value = labels["returns"]
    price = student_t_nll(value, outputs.mean, outputs.log_scale, outputs.dof)
    if outputs.quantiles is not None:
        price = price + pinball(value, outputs.quantiles, levels)
    if outputs.allocation is not None:
        price = price + lost_utility(value, outputs.allocation, labels["cost"])
    return price


def direction_loss(outputs: Outputs, labels: Labelled, _: Sequence[float]) -> Tensor:
    """Return the cross-entropy of the direction."""
    classes = labels["direction"]
    return functional.cross_entropy(
        outputs.direction_logits.flatten(0, -2),
        classes.flatten(),
        ignore_index=NO_LABEL,
        reduction="none",
    ).view(classes.shape)


def tails_loss(tails: Tensor, labels: Labelled) -> Tensor:
    """Return the mean over tails and shares of the joint loss of value at risk and shortfall.

    For a loss l, value at risk V, shortfall E and tail share a it is ``(l - V)+ ÷ (a E) + V ÷ E +
    ln E - 1``. Its expectation is least at the true V and E, and differences do not depend on the
    unit. Source: Fissler and Ziegel, 2016; Patton, Ziegel and Chen, 2019 (FZ0).
    """
    realised = torch.stack((-labels["returns"], labels["returns"]), dim=-1)[..., None]
    at_risk, shortfall = tails.unbind(-1)  # [.., long and short, share]
    share = torch.tensor(SHARES, dtype=tails.dtype, device=tails.device)
    excess = functional.relu(realised - at_risk) / (share * shortfall)
    return (excess + at_risk / shortfall + torch.log(shortfall) - 1.0).mean((-2, -1))


def regimes_loss(regimes: Tensor, labels: Labelled) -> Tensor:
    """Return the negative log density of the variance under a mixture over regimes.

    Regimes have no labels; the likelihood defines them (mixture density network, Bishop, 1994).
    """
    value = torch.clamp(labels["variance"], min=VARIANCE_FLOOR)[..., None]
    share, log_mean, log_shape = regimes.unbind(-2)
    shape = torch.exp(log_shape)
    density = (
        shape * (log_shape - log_mean)
        - torch.lgamma(shape)
        + (shape - 1.0) * torch.log(value)
        - shape * value * torch.exp(-log_mean)
    )
    return -torch.logsumexp(share + density, dim=-1)


LOSSES: Final = {
    "return": Loss("Student-t NLL", return_loss, is_price=True),
    "direction": Loss("cross-entropy", direction_loss, is_price=True),
    "volatility": Loss(
        "QLIKE",
        lambda outputs, labels, _: qlike(labels["variance"], outputs.log_variance),
        is_price=False,
    ),
}
"""Every task's loss by name, in the order of the axis *task*."""
AUXILIARY_LOSSES: Final = {
    "tails": AuxiliaryLoss("joint loss of VaR and ES", "volatility", tails_loss),
    "drawdown": AuxiliaryLoss(
        "pinball of the drawdown",
        "volatility",
        lambda output, labels: pinball(labels["drawdown"], output, DRAWDOWN_LEVELS),
    ),
    "runup": AuxiliaryLoss(
        "pinball of the run-up",
        "volatility",
        lambda output, labels: pinball(labels["runup"], output, DRAWDOWN_LEVELS),
    ),
    "regimes": AuxiliaryLoss(
        "likelihood of a mixture of gamma distributions", "volatility", regimes_loss
    ),
    "path": AuxiliaryLoss(
        "pinball of the path",
        "volatility",
        lambda output, labels: pinball(labels["path"], output, PATH_LEVELS).mean(-1),
    ),
}
"""The loss of each auxiliary head, by name."""


def elementwise(
    outputs: Outputs, labels: Labelled, used: Tensor, levels: Sequence[float] = ()
) -> Tensor:
    """Return [task, batch, time, horizon] losses of labels [batch, time, horizon, ..].

    *outputs* are float32, and so are the losses. *levels* are those of the quantiles. Where *used*
    [batch, time, horizon] is false, a label may be anything and its losses are meaningless.
    """
    filled = {
        name: torch.where(
            used[(..., *(None,) * (label.ndim - used.ndim))],
            label,
            torch.full_like(label, LABELS[name].missing),
        )
        for name, label in labels.items()
    }
    return torch.stack([_of_task(task, outputs, filled, levels) for task in LOSSES])


def _of_task(task: str, outputs: Outputs, labels: Labelled, levels: Sequence[float]) -> Tensor:
    """Return the loss of *task* plus those of its auxiliary heads."""
    total = LOSSES[task].function(outputs, labels, levels)
    for head, auxiliary in AUXILIARY_LOSSES.items():
        if auxiliary.to == task and (output := getattr(outputs, head)) is not None:
            total = total + auxiliary.function(output, labels)
    return total


def averaged(each: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Return [task, horizon] means of [task, batch, time, horizon] losses by *weights*.

    *total* [horizon] is the sum of weights to divide by. For a piece of a batch it is the batch's,
    so that the results of the pieces add up.
    """
    if total is None:
        total = weights.sum((0, 1))
    return (each * weights).sum((1, 2)) / torch.clamp(total, min=1e-9)


# --- scores

_FIT_ROWS = 20_000  # labels for the fit of the constant Student t


def constants(training: Sequence[Samples], *, seed: int) -> Outputs:
    """Return the best constant answers to the labels of *training*: [1, 1, horizon]."""
    generator = np.random.default_rng(seed)
    horizons = training[0].weights.shape[1]
    fitted: list[tuple[float, ...]] = []
    frequency, variance = np.empty((horizons, 3)), np.empty(horizons)
    for column in range(horizons):
        used = [samples.weights[:, column] > 0 for samples in training]
        pairs = list(zip(training, used, strict=True))
        returns = np.concatenate([s.labels["returns"][0, u, column] for s, u in pairs])
        classes = np.concatenate([s.labels["direction"][0, u, column] for s, u in pairs])
        drawn = generator.choice(returns, min(len(returns), _FIT_ROWS), replace=False)
        fitted.append(stats.t.fit(drawn.astype(np.float64)))
        counts = np.bincount(classes, minlength=3)[:3] + 1
        frequency[column] = counts / counts.sum()
        variance[column] = np.concatenate(
            [s.labels["variance"][0, u, column] for s, u in pairs]
        ).mean(dtype=np.float64)
    dof, location, scale = np.array(fitted).T

    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(array).float()[None, None]

    return Outputs(
        mean=tensor(location),
        log_scale=tensor(np.log(scale)),
        dof=tensor(np.clip(dof, 1.0, 100.0)),
        direction_logits=tensor(np.log(frequency)),
        log_variance=tensor(np.log(variance)),
    )


def head_scores(network: Network, validation: Sequence[Samples], constant: Outputs) -> Array:
    """Return [task, horizon] gains of the mean losses over *constant*, in units of its noise.

    Days are shared by all segments, since they are of one market.
    """
    losses, reference, weight, day = [], [], [], []
    labelled = [samples.rows for samples in validation]
    total = sum(map(len, labelled))
    for samples, all_rows in zip(validation, labelled, strict=True):
        rows = thinned(all_rows, total, network)
        fields = predict(network, samples.segment, rows)
        losses.append(_elementwise(outputs_of(fields), samples, rows))
        reference.append(_elementwise(constant, samples, rows))
        weight.append(samples.weights[rows])
        day.append(samples.segment.open_time_ms[rows] // DAY_MS)
    weights, days = np.concatenate(weight), np.concatenate(day)
    baseline = np.concatenate(reference, axis=1)
    gains: Array = _means(baseline, weights) - _means(np.concatenate(losses, axis=1), weights)
    return gains / _noise(baseline, weights, days)


def outputs_of(fields: Fields) -> Outputs:
    """Convert fields [time, ..] to a network's outputs [1, time, ..]."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(fields[name])[None]

    return Outputs(
        mean=tensor("mean"),
        log_scale=torch.log(tensor("scale")),
        dof=tensor("dof"),
        direction_logits=tensor("logits"),
        log_variance=torch.log(tensor("variance")),
    )


def _elementwise(outputs: Outputs, samples: Samples, rows: NDArray[np.int64]) -> Array:
    """Return [task, row, horizon] losses of one segment's *rows*."""
    wide = outputs.map(lambda part: part.expand(1, len(rows), *part.shape[2:]))
    with torch.inference_mode():
        each = elementwise(
            wide,
            {name: torch.from_numpy(x[:, rows]) for name, x in samples.labels.items()},
            torch.from_numpy(samples.weights[rows] > 0)[None],
        )
    losses: Array = each[:, 0].double().numpy()
    return losses


def _means(each: Array, weights: NDArray[np.float32]) -> Array:
    """Return [task, horizon] means of [task, time, horizon] losses by [time, horizon] weights."""
    means: Array = (each * weights).sum(axis=1) / weights.sum(axis=0)
    return means


def _noise(each: Array, weights: NDArray[np.float32], days: NDArray[np.int64]) -> Array:
    """Return [task, horizon] standard errors by day of the mean losses.

    With too few days the unit is the standard deviation of the rows' losses; if all are equal, it
    is 1, so that no score is divided by zero.
    """
    errors = np.ones(each.shape[::2])
    deviations = each - _means(each, weights)[:, None]
    for task, column in np.ndindex(*errors.shape):
        weight, deviation = weights[:, column], deviations[task, :, column]
        used = weight > 0
        weighted = (weight * deviation)[used] / weight.sum() * used.sum()  # has the mean 0
        error = standard_error(weighted, days[used])
        if error is None:
            error = float(np.sqrt((weight * deviation**2).sum() / weight.sum()))
        errors[task, column] = error if error > _TINY else 1.0
    return errors


def titles(heads: Collection[str]) -> str:
    """Return the names of the losses of a network with these auxiliary *heads*, for a card."""
    added = [each.title for head, each in AUXILIARY_LOSSES.items() if head in heads]
    return ", ".join([*(each.title for each in LOSSES.values()), *added])


_TINY: Final = 1e-12
_CUT: Final = 3.0


def traced(network: Network) -> FlashNetwork:
    """Return *network* if its attention can be trained by entropy; else raise ``ConfigInvalid``."""
    if not isinstance(network, FlashNetwork) or network.config.checkpointing:
        raise ConfigInvalid(
            "training.entropy_weight is for the kind flash without checkpointing; leave it out."
        )
    return network


def trained_confidence(layers: Sequence[Read]) -> Tensor:
    """Return each row's confidence, the mean over layers and heads: [batch, time]."""
    shares = []
    for layer in layers:
        assert isinstance(layer, Layer), "flash networks have layers of this type only"
        time = layer.shape[2]
        visible = layer.mask.visible(time, time).to(layer.query.device)
        entropy = trained_entropy(layer.query, layer.key, layer.logsumexp, layer.mask)
        shares.append(row_confidence(entropy, visible).mean(dim=1))
    return torch.stack(shares).mean(dim=0)


def confidence_loss(confidence: Tensor, each: Tensor, weights: Tensor) -> Tensor:
    """Return the correlation of *confidence* [batch, time] with the losses of its rows.

    *each* are losses [task, batch, time, horizon]. They are detached, so the gradient reaches the
    attention only through its entropy. *weights* [batch, time, horizon] are above 0 for labels. A
    row's loss is the mean of its losses, each standardised and cut at three deviations. The result
    is 0 without variation.
    """
    used = (weights > 0).all(dim=-1)
    losses = each.detach()[:, used]  # [task, row, horizon]
    if losses.shape[1] < 2:
        return confidence.new_zeros(())
    centred = losses - losses.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    loss = (centred / spread.clamp_min(_TINY)).clamp(-_CUT, _CUT).mean(dim=(0, 2))  # [row]
    sure = confidence[used]
    sure = sure - sure.mean()
    loss = loss - loss.mean()
    scale = (sure.square().mean() * loss.square().mean()).clamp_min(_TINY**2).sqrt()
    return (sure * loss).mean() / scale
