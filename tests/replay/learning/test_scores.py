"""Heads are scored against the best constant, in units of its noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learning import DAY_BARS, HORIZONS, segment, split, tiny

from tracepaper.replay.learning.dataset import alone
from tracepaper.replay.learning.losses import constants, head_scores
from tracepaper.replay.learning.samples import samples_in
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.windows import predict
from tracepaper.strategies.networks.architecture import Outputs, kind_of
from tracepaper.strategies.networks.flash import FlashNetwork

SEGMENTS = [segment(4 * DAY_BARS)]
SPLIT = split(2, 3.5, 3.7)
TRAINING = samples_in(alone(SEGMENTS), HORIZONS, SPLIT, Part.TRAIN)
VALIDATION = samples_in(alone(SEGMENTS), HORIZONS, SPLIT, Part.VALIDATION)


class FixedNetwork(FlashNetwork):
    """Answers every bar with the same outputs."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__(tiny())
        self.outputs = outputs

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> Outputs:
        def spread(part: torch.Tensor) -> torch.Tensor:
            return part.expand(1, x.shape[1], *part.shape[2:])

        answer = self.outputs
        return answer._replace(
            mean=spread(answer.mean),
            log_scale=spread(answer.log_scale),
            dof=spread(answer.dof),
            direction_logits=spread(answer.direction_logits),
            log_variance=spread(answer.log_variance),
        )


def test_the_constant_answer_scores_nothing() -> None:
    constant = constants(TRAINING, seed=0)
    scores = head_scores(FixedNetwork(constant), VALIDATION, constant)
    np.testing.assert_allclose(scores, 0.0, atol=1e-3)


def test_a_worse_constant_scores_below_zero_on_its_head_alone() -> None:
    constant = constants(TRAINING, seed=0)
    worse = constant._replace(log_variance=constant.log_variance + 1.5)
    scores = head_scores(FixedNetwork(worse), VALIDATION, constant)
    assert (scores[2] < 0).all()
    np.testing.assert_allclose(scores[:2], 0.0, atol=1e-3)


def test_the_constants_are_those_of_the_training_labels() -> None:
    constant = constants(TRAINING, seed=0)
    used = TRAINING[0].weights[:, 0] > 0
    labels = TRAINING[0].labels
    variance = constant.log_variance[0, 0].exp()
    np.testing.assert_allclose(variance[0], labels["variance"][0, used, 0].mean(), rtol=1e-4)
    up = (labels["direction"][0, used, 0] == 2).mean()
    np.testing.assert_allclose(constant.direction_logits[0, 0, 0, 2].exp(), up, atol=1e-3)


def test_predictions_do_not_depend_on_where_they_start() -> None:
    torch.manual_seed(0)
    network = FlashNetwork(tiny())
    series = SEGMENTS[0]
    whole = predict(network, series, np.arange(series.first, series.first + 600))
    part = predict(network, series, np.arange(series.first + 300, series.first + 600, 7))
    np.testing.assert_allclose(part["mean"], whole["mean"][300::7], atol=1e-5)
    np.testing.assert_allclose(part["variance"], whole["variance"][300::7], rtol=1e-4)


@pytest.mark.parametrize("kind", ["informer", "lstm", "flash"])
def test_a_window_is_answered_alone_as_in_company(kind: str) -> None:
    torch.manual_seed(0)
    section = {"dim": 16, "window": 40, "horizons": [5, 30]}
    maker = kind_of(kind)
    network = maker.make(maker.read(section | ({"mask": "causal"} if kind == "flash" else {})))
    assert not network.answers_every_row
    rows = np.arange(SEGMENTS[0].first, SEGMENTS[0].first + 500, 3)
    every = predict(network, SEGMENTS[0], rows)
    for at in (0, 20, 166):
        alone = predict(network, SEGMENTS[0], rows[[at]])
        np.testing.assert_allclose(every["mean"][at], alone["mean"][0], atol=1e-5)
    moved = predict(network, SEGMENTS[0], rows[[20]] - 1)
    assert np.abs(moved["mean"][0] - every["mean"][20]).max() > 1e-6
