"""Others' attributions beside ours: captum's over groups of bars, or of features for one row.

What is attributed is whether each group is there: 1 is the window as it is, 0 its neutral rows. A
network's rollout, summed over the bars of a group, is compared with the sizes of what integrated
gradients, KernelSHAP and LIME give. A tree or a glm is compared by its own exact contributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.learning.inspection.model import (
    TARGETS,
    DecidedBar,
    Ids,
    Subject,
    answer_of,
    days_of,
    looked,
)
from tracepaper.replay.learning.statistics import estimate
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.attribution import PATH_NODES
from tracepaper.strategies.forecasters.tabular import TrainedRows
from tracepaper.strategies.networks.architecture import Network

GROUPS: Final = 16
"""Blocks of a window's bars, of equal length but for rounding."""
SAMPLES_A_GROUP: Final = 8
"""Of KernelSHAP and LIME: how often the model is asked for each group."""
_AT_ONCE: Final = 8
_SEED: Final = 20_170_817

Answer = Callable[[Tensor], Tensor]
"""[sample, group] presences from 0 to 1 → [sample] answers."""


class _Method(Protocol):
    """What captum calls an attribution."""

    attribute: Callable[..., Tensor]


class Game(NamedTuple):
    """One decision as a function of its groups, beside what we say of each."""

    answer: Answer
    ours: Array  # [group]


class WeightedLinear:
    """Weighted least squares with an intercept, as captum's surrogates ask for it.

    Captum's own need scikit-learn. KernelSHAP is exact with it, LIME has no further penalty.
    """

    def fit(self, data: Iterable[Sequence[Tensor]]) -> None:
        """Fit the one batch of [sample, group] inputs, answers and weights of *data*."""
        inputs, answers, weights = next(iter(data))
        root = weights.double().sqrt()[:, None]
        ones = torch.ones_like(answers.double())[:, None]
        design = torch.cat([inputs.double(), ones], dim=1)
        solved = torch.linalg.lstsq(root * design, root * answers.double()[:, None], driver="gelsd")
        self._weights: Tensor = solved.solution[:-1, 0]

    def representation(self) -> Tensor:
        """Return the weight of each group."""
        return self._weights


def methods(*, is_smooth: bool) -> Mapping[str, Callable[[Answer, int], Array]]:
    """Return captum's methods by name: (answer, groups) → attribution [group].

    Raises ``ConfigInvalid`` where captum is missing.
    """
    try:
        from captum.attr import IntegratedGradients, KernelShap, Lime
    except ImportError:
        raise ConfigInvalid(missing_sentence("captum", "--inspect attribution")) from None

    def asked(made: _Method, groups: int) -> Array:
        given = torch.ones(1, groups)
        found = made.attribute(
            given,
            baselines=torch.zeros_like(given),
            n_samples=SAMPLES_A_GROUP * groups,
            perturbations_per_eval=_AT_ONCE,
        )
        return _array(found)

    def path(answer: Answer, groups: int) -> Array:
        given = torch.ones(1, groups)
        found = IntegratedGradients(answer).attribute(
            given,
            baselines=torch.zeros_like(given),
            n_steps=PATH_NODES,
            method="gausslegendre",
            internal_batch_size=_AT_ONCE,
        )
        return _array(found)

    def shapley(answer: Answer, groups: int) -> Array:
        made: Any = KernelShap(answer)  # captum's type asks for its own models
        made.interpretable_model = WeightedLinear()
        return asked(made, groups)

    def local(answer: Answer, groups: int) -> Array:
        surrogate: Any = WeightedLinear()
        return asked(Lime(answer, interpretable_model=surrogate), groups)

    smooth = {"integrated gradients": path} if is_smooth else {}
    return {**smooth, "KernelSHAP": shapley, "LIME": local}


def _array(found: Tensor) -> Array:
    array: Array = found[0].detach().double().numpy()
    return array


def blocks(bars: int) -> Ids:
    """Return the group of each bar of a window, oldest first."""
    found: Ids = np.arange(bars) * min(GROUPS, bars) // bars
    return found


def network_games(subject: Subject, network: Network, decision: DecidedBar) -> list[Game]:
    """Return, for each of ``TARGETS``, a network's decision as a function of blocks of bars."""
    count = network.config.receptive_field
    of_bar, positions = blocks(count), decision.positions(count)
    rows = decision.rows(count)
    neutral, window = torch.from_numpy(subject.neutral), torch.from_numpy(rows)
    ours = np.bincount(of_bar, looked(network, rows, positions)).astype(np.float64)
    group = torch.from_numpy(of_bar)

    def game(target: str) -> Answer:
        whole = answer_of(network, positions, target, subject.column)

        def answer(present: Tensor) -> Tensor:
            shares = present.float()[:, group][:, :, None]
            return whole(neutral + shares * (window - neutral)).cpu()

        return answer

    return [Game(game(target), ours) for target in TARGETS]


def row_games(subject: Subject, trained: TrainedRows, decision: DecidedBar) -> list[Game]:
    """Return, for each of ``TARGETS``, a row model's decision as a function of its features."""
    row, neutral = (subject.own_rows(of) for of in (decision.rows(1)[0], subject.neutral))
    added = trained.model.added(row)
    own = (added.log_variance[subject.column], added.mean[subject.column])

    def game(target: str) -> Answer:
        def answer(present: Tensor) -> Tensor:
            rows = neutral + present.numpy().astype(np.float32) * (row - neutral)
            mean, log_variance = trained.model.answer(rows)
            chosen = log_variance if target == TARGETS[0] else mean
            return torch.from_numpy(chosen[:, subject.column].copy())

        return answer

    return [Game(game(target), ours) for target, ours in zip(TARGETS, own, strict=True)]


def agreement(ours: Array, theirs: Array) -> float:
    """Return Spearman's correlation of the sizes; 0 where one of them is constant."""
    first, second = rankdata(np.abs(ours)), rankdata(np.abs(theirs))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def attributions(subject: Subject, count: int) -> list[Table]:
    """Return rank correlations over *count* decisions, and what features add to a row model.

    Of an ensemble both halves are compared, each by its own.
    """
    network, trained = subject.network, subject.trained
    if network is not None and not network.has_attention:
        if trained is None:
            raise ConfigInvalid(
                "--inspect attribution compares with a rollout, and this network has no attention; "
                "leave it out."
            )
        network = None
    known = {True: methods(is_smooth=True), False: methods(is_smooth=False)}
    decisions = subject.decisions(count)
    found = []
    if network is not None:
        of_network = network
        agreed, _ = _compared(
            lambda one: network_games(subject, of_network, one), decisions, known[True]
        )
        found.append(_agreements(agreed, decisions, of_rows=False))
    if trained is not None:
        agreed, own = _compared(
            lambda one: row_games(subject, trained, one), decisions, known[False]
        )
        name = "attributions_rows" if network is not None else "attributions"
        found.append(replace(_agreements(agreed, decisions, of_rows=True), key=name))
        found.append(_added(trained, own, decisions))
    return found


def _compared(
    games: Callable[[DecidedBar], list[Game]],
    decisions: Sequence[DecidedBar],
    known: Mapping[str, Callable[[Answer, int], Array]],
) -> tuple[dict[tuple[str, str], list[float]], dict[str, list[Array]]]:
    """Return the agreement at each decision by target and *known* method, and ours by target."""
    torch.manual_seed(_SEED)
    agreed: dict[tuple[str, str], list[float]] = {}
    own: dict[str, list[Array]] = {target: [] for target in TARGETS}
    for decision in decisions:
        for target, game in zip(TARGETS, games(decision), strict=True):
            own[target].append(game.ours)
            for name, method in known.items():
                theirs = method(game.answer, len(game.ours))
                agreed.setdefault((target, name), []).append(agreement(game.ours, theirs))
    return agreed, own


def _agreements(
    agreed: Mapping[tuple[str, str], list[float]], decisions: Sequence[DecidedBar], *, of_rows: bool
) -> Table:
    days = days_of(decisions)
    rows: list[dict[str, Value]] = [
        {"of": target, "method": name, "rank correlation": estimate(np.array(values), days)}
        for (target, name), values in agreed.items()
    ]
    ours = "exact contributions of features" if of_rows else f"rollout over {GROUPS} blocks of bars"
    return table_of_rows(
        "attributions",
        f"Rank correlation of the {ours} with captum's attributions, {len(decisions)} decisions"
        f" of {len(np.unique(days))} days",
        "Spearman's, of sizes, a decision at a time; 0 is what chance gives. What is absent is the"
        f" mean of each feature over the training part; {SAMPLES_A_GROUP} samples a group.",
        rows,
    )


def _added(
    trained: TrainedRows, own: Mapping[str, Sequence[Array]], decisions: Sequence[DecidedBar]
) -> Table:
    days = days_of(decisions)
    sizes = {target: np.abs(np.stack(each)) for target, each in own.items()}
    order = np.argsort(-sizes[TARGETS[0]].mean(axis=0), kind="stable").tolist()
    names = trained.schema.names
    rows: list[dict[str, Value]] = [
        {
            "feature": names[at],
            **{target: estimate(of[:, at], days) for target, of in sizes.items()},
        }
        for at in order
    ]
    return table_of_rows(
        "contributions",
        "Mean size of each feature's exact contribution",
        "To the log variance, and to the mean in units of σ √h.",
        rows,
    )
