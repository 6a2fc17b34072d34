"""The losses that networks are trained by, and the entropy of their attention.

Scores are in units of the noise of the loss: the standard error, over calendar days, of the
constant answer's own loss. It does not depend on the network, so that scores of one head can be
compared from one step to the next.

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
from tracepaper.replay.report.metrics import mean_error
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
    """What a head is trained and judged by."""

    title: str
    of: Elementwise
    is_price: bool
    """Whether it says where the price goes; of volatility each label says more."""


CONSTANTS: Final = {"flat_band": FLAT_BAND, "variance_floor": VARIANCE_FLOOR}
"""What the labels of bars are made by."""


class AddedLoss(NamedTuple):
    """What a head that not every network has is trained by, together with the task *to*.

    It adds to the loss of that task while the task is learnt, and has no score of its own.
    """

    title: str
    to: str
    of: OfHead
    """``(what the head says, labels) -> losses [batch, time, horizon]``."""


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

    Each unit pays *cost*, in the unit of the return. Without it the best answer is the mean divided
    by the mean square: Kelly's share, cut at one; a mean below the cost is worth no position.
    """
    gain = allocation * value - allocation.abs() * cost
    return 0.5 * gain * gain - gain


def return_loss(outputs: Outputs, labels: Labelled, levels: Sequence[float]) -> Tensor:
    """Return the return's loss; quantiles and allocation add to it where the network has them."""
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

    With a loss l, V and E of a share a it is ``(l - V)+ ÷ (a E) + V ÷ E + ln E - 1``, least in
    expectation at both true ones; no unit moves a difference of two. Source: Fissler and Ziegel,
    2016; Patton, Ziegel and Chen, 2019 (FZ0).
    """
    lost = torch.stack((-labels["returns"], labels["returns"]), dim=-1)[..., None]
    at_risk, shortfall = tails.unbind(-1)  # [.., long and short, share]
    share = torch.tensor(SHARES, dtype=tails.dtype, device=tails.device)
    beyond = functional.relu(lost - at_risk) / (share * shortfall)
    return (beyond + at_risk / shortfall + torch.log(shortfall) - 1.0).mean((-2, -1))


def regimes_loss(regimes: Tensor, labels: Labelled) -> Tensor:
    """Return the negative log density of the variance, a mixture of what it is in each regime.

    No regime is labelled: what each is follows from the likelihood (mixture density network,
    Bishop, 1994).
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
"""Every loss by its name; their order is that of the axis *task*."""
ADDED: Final = {
    "tails": AddedLoss("joint loss of VaR and ES", "volatility", tails_loss),
    "drawdown": AddedLoss(
        "pinball of the drawdown",
        "volatility",
        lambda given, labels: pinball(labels["drawdown"], given, DRAWDOWN_LEVELS),
    ),
    "runup": AddedLoss(
        "pinball of the run-up",
        "volatility",
        lambda given, labels: pinball(labels["runup"], given, DRAWDOWN_LEVELS),
    ),
    "regimes": AddedLoss(
        "likelihood of a mixture of gamma distributions", "volatility", regimes_loss
    ),
    "path": AddedLoss(
        "pinball of the path",
        "volatility",
        lambda given, labels: pinball(labels["path"], given, PATH_LEVELS).mean(-1),
    ),
}
"""The loss of each head that not every network has, by the head's name."""


def elementwise(
    outputs: Outputs, labels: Labelled, used: Tensor, levels: Sequence[float] = ()
) -> Tensor:
    """Return [task, batch, time, horizon] losses; labels [batch, time, horizon, ..] are as *used*.

    *outputs* are in float32, in which losses are computed.
    *levels* are those of the quantiles. Where *used* is false a label may hold anything, and its
    losses mean nothing.
    """
    filled = {
        name: torch.where(
            used[(..., *(None,) * (given.ndim - used.ndim))],
            given,
            torch.full_like(given, LABELS[name].missing),
        )
        for name, given in labels.items()
    }
    return torch.stack([_of_task(task, outputs, filled, levels) for task in LOSSES])


def _of_task(task: str, outputs: Outputs, labels: Labelled, levels: Sequence[float]) -> Tensor:
    """Return the loss of a task, and of the auxiliary heads that are learnt with it."""
    total = LOSSES[task].of(outputs, labels, levels)
    for head, auxiliary in ADDED.items():
        if auxiliary.to == task and (output := getattr(outputs, head)) is not None:
            total = total + auxiliary.of(output, labels)
    return total


def averaged(each: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Return [task, horizon] means of [task, batch, time, horizon] losses by *weights*.

    *total* [horizon] are the weights of a whole batch, of which these are a piece: the results
    of its pieces add up to the whole batch's.
    """
    if total is None:
        total = weights.sum((0, 1))
    return (each * weights).sum((1, 2)) / torch.clamp(total, min=1e-9)


# --- scores

_FIT_ROWS = 20_000  # labels that the constant Student t is fitted to; more changes nothing


def constants(training: Sequence[Samples], *, seed: int) -> Outputs:
    """Return the best constant answers to the labels of *training*, of shape [1, 1, horizon]."""
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

    Days are calendar days across all segments, since they share one market.
    """
    mine, reference, weight, day = [], [], [], []
    labelled = [samples.rows for samples in validation]
    total = sum(map(len, labelled))
    for samples, every in zip(validation, labelled, strict=True):
        rows = thinned(every, total, network)
        fields = predict(network, samples.segment, rows)
        mine.append(_elementwise(outputs_of(fields), samples, rows))
        reference.append(_elementwise(constant, samples, rows))
        weight.append(samples.weights[rows])
        day.append(samples.segment.open_time_ms[rows] // DAY_MS)
    weights, days = np.concatenate(weight), np.concatenate(day)
    baseline = np.concatenate(reference, axis=1)
    gains: Array = _means(baseline, weights) - _means(np.concatenate(mine, axis=1), weights)
    return gains / _noise(baseline, weights, days)


def outputs_of(fields: Fields) -> Outputs:
    """Return fields [time, ..] as a network's outputs [1, time, ..]."""

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

    Where too few days give none it is the deviation of the rows' losses, and 1 where those are all
    the same: a unit that no score is divided to pieces by.
    """
    errors = np.ones(each.shape[::2])
    deviations = each - _means(each, weights)[:, None]
    for task, column in np.ndindex(*errors.shape):
        weight, off = weights[:, column], deviations[task, :, column]
        used = weight > 0
        pull = (weight * off)[used] / weight.sum() * used.sum()  # sums to nothing
        error = mean_error(pull, days[used])
        if error is None:
            error = float(np.sqrt((weight * off**2).sum() / weight.sum()))
        errors[task, column] = error if error > _TINY else 1.0
    return errors


def titles(heads: Collection[str]) -> str:
    """Name what a network with these auxiliary *heads* is trained by, as its card does."""
    added = [each.title for head, each in ADDED.items() if head in heads]
    return ", ".join([*(each.title for each in LOSSES.values()), *added])


_TINY: Final = 1e-12
_CUT: Final = 3.0


def traced(network: Network) -> FlashNetwork:
    """Return *network*, whose attention can be trained by its entropy; refuse any other."""
    if not isinstance(network, FlashNetwork) or network.config.checkpointing:
        raise ConfigInvalid(
            "training.entropy_weight is for the kind flash without checkpointing; leave it out."
        )
    return network


def trained_confidence(layers: Sequence[Read]) -> Tensor:
    """Return each row's confidence, the mean over layers and heads: [batch, time]."""
    shares = []
    for layer in layers:
        assert isinstance(layer, Layer), "what a flash network attends by"
        time = layer.shape[2]
        visible = layer.mask.visible(time, time).to(layer.query.device)
        entropy = trained_entropy(layer.query, layer.key, layer.logsumexp, layer.mask)
        shares.append(row_confidence(entropy, visible).mean(dim=1))
    return torch.stack(shares).mean(dim=0)


def confidence_loss(confidence: Tensor, each: Tensor, weights: Tensor) -> Tensor:
    """Return the correlation of *confidence* [batch, time] with the losses of its rows.

    *each* are losses [task, batch, time, horizon], which are taken as given: the gradient reaches
    the attention by its entropy alone. *weights* [batch, time, horizon] are above 0 where a label
    is. Each loss is standardised over its rows and cut at three deviations, and a row has the mean
    of them. It is 0 where nothing varies.
    """
    used = (weights > 0).all(dim=-1)
    given = each.detach()[:, used]  # [task, row, horizon]
    if given.shape[1] < 2:
        return confidence.new_zeros(())
    centred = given - given.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    wrong = (centred / spread.clamp_min(_TINY)).clamp(-_CUT, _CUT).mean(dim=(0, 2))  # [row]
    sure = confidence[used]
    sure = sure - sure.mean()
    wrong = wrong - wrong.mean()
    scale = (sure.square().mean() * wrong.square().mean()).clamp_min(_TINY**2).sqrt()
    return (sure * wrong).mean() / scale
