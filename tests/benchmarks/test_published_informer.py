"""The published Informer, held against a dense computation of its own in numpy, float64."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from dense import DenseLayers, Matrix
from published_networks import (
    MARKS,
    PublishedInformer,
    PublishedInformerConfig,
)

torch.set_num_threads(1)
pytestmark = pytest.mark.long

SMALL = PublishedInformerConfig(
    variables=3, window=40, horizon=10, start=14, dim=16, heads=4, hidden=24, encoders=(3, 2),
    decoder_layers=2, factor=2, dropout=0.1, seed=5,
)  # fmt: skip


class Dense(DenseLayers):
    """The architecture written down a second time: dense, one window, one head, one row a loop."""

    def __init__(self, network: PublishedInformer) -> None:
        super().__init__(network)
        self.config = network.config

    def circular(self, name: str, x: Matrix) -> Matrix:
        kernel, time = self.weights[f"{name}.weight"], len(x)
        rows = [
            sum((kernel[:, :, tap] @ x[(row + tap - 1) % time] for tap in range(3)), start=0.0)
            for row in range(time)
        ]
        made: Matrix = np.stack(rows) + self.weights[f"{name}.bias"]
        return made

    def embed(self, name: str, x: Matrix, marks: Matrix) -> Matrix:
        code = np.zeros((len(x), self.config.dim))
        for row in range(len(x)):
            for pair in range(self.config.dim // 2):
                angle = row / 10_000 ** (2 * pair / self.config.dim)
                code[row, 2 * pair : 2 * pair + 2] = math.sin(angle), math.cos(angle)
        return self.circular(f"{name}.value", x) + code + self.linear(f"{name}.mark", marks)

    def sparse(self, name: str, x: Matrix, *, masked: bool) -> Matrix:
        heads, time = self.config.heads, len(x)
        size = self.config.dim // heads
        query, key, value = (
            self.linear(f"{name}.projections.{part}", x) for part in ("query", "key", "value")
        )
        samples = self.weights[f"{name}.samples"]
        top = min(time, self.config.factor * math.ceil(math.log(time)))
        assert samples.shape == (time, top)
        context = np.zeros((heads, time, size))
        for head in range(heads):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in (query, key, value))
            products = q @ k.T
            score = np.zeros(time)
            for row in range(time):
                drawn = products[row, samples[row]]
                score[row] = drawn.max() - drawn.sum() / time
            context[head] = np.cumsum(v, 0) if masked else v.mean(0)
            for row in np.argsort(-score)[:top]:
                seen = row + 1 if masked else time
                power = np.exp(products[row, :seen] / math.sqrt(size))
                context[head, row] = power @ v[:seen] / power.sum()
        if masked and self.config.mix:
            joined = context.reshape(time, heads * size)
        else:
            joined = context.transpose(1, 0, 2).reshape(time, heads * size)
        return self.linear(f"{name}.projections.out", joined)

    def cross(self, name: str, x: Matrix, memory: Matrix) -> Matrix:
        size = self.config.dim // self.config.heads
        query = self.linear(f"{name}.projections.query", x)
        key, value = (self.linear(f"{name}.projections.{p}", memory) for p in ("key", "value"))
        parts = []
        for head in range(self.config.heads):
            at = slice(head * size, (head + 1) * size)
            power = np.exp(query[:, at] @ key[:, at].T / math.sqrt(size))
            parts.append(power / power.sum(1, keepdims=True) @ value[:, at])
        return self.linear(f"{name}.projections.out", np.concatenate(parts, 1))

    def feed_forward(self, name: str, x: Matrix) -> Matrix:
        return self.norm(f"{name}.norm", x + super().feed_forward(name, x))

    def distil(self, name: str, x: Matrix) -> Matrix:
        mixed = self.circular(f"{name}.convolution", x)
        mean, variance = (self.weights[f"{name}.norm.running_{what}"] for what in ("mean", "var"))
        scaled = (mixed - mean) / np.sqrt(variance + 1e-5)
        scaled = scaled * self.weights[f"{name}.norm.weight"] + self.weights[f"{name}.norm.bias"]
        active = np.where(scaled > 0, scaled, np.expm1(np.minimum(scaled, 0)))
        starts = range(0, len(x), 2)
        made: Matrix = np.stack([active[max(at - 1, 0) : at + 2].max(0) for at in starts])
        return made

    def encode(self, x: Matrix) -> Matrix:
        parts = []
        for number, depth in enumerate(self.config.encoders):
            state = x[len(x) - len(x) // 2**number :]
            for layer in range(depth):
                name = f"encoders.{number}.layers.{layer}"
                if layer and self.config.distil:
                    state = self.distil(f"encoders.{number}.distillings.{layer - 1}", state)
                moved = state + self.sparse(f"{name}.attention", state, masked=False)
                state = self.feed_forward(f"{name}.feed_forward", self.norm(f"{name}.norm", moved))
            parts.append(self.norm(f"encoders.{number}.norm", state))
        return np.concatenate(parts)

    def __call__(self, x: Matrix, marks: Matrix) -> Matrix:
        window, horizon = self.config.window, self.config.horizon
        memory = self.encode(self.embed("embed", x, marks[:window]))
        begun = window - self.config.start
        given = np.concatenate([x[begun:], np.zeros((horizon, x.shape[1]))])
        state = self.embed("embed_written", given, marks[begun:])
        for layer in range(self.config.decoder_layers):
            name = f"decoder.{layer}"
            moved = state + self.sparse(f"{name}.attention", state, masked=True)
            state = self.norm(f"{name}.attention_norm", moved)
            moved = state + self.cross(f"{name}.cross", state, memory)
            moved = self.norm(f"{name}.cross_norm", moved)
            state = self.feed_forward(f"{name}.feed_forward", moved)
        return self.linear("project", self.norm("norm", state))[-horizon:]


def case(
    config: PublishedInformerConfig = SMALL, batch: int = 2
) -> tuple[PublishedInformer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    network = PublishedInformer(config).double()
    x = torch.randn(batch, config.window, config.variables, dtype=torch.float64)
    marks = torch.rand(batch, config.window + config.horizon, MARKS, dtype=torch.float64) - 0.5
    network(x, marks)  # in training mode: batch norms leave their start
    for part in network.parameters():
        part.data += 0.2 * torch.randn_like(part)
    return network.eval(), x, marks


@pytest.mark.parametrize(
    "change",
    [{}, {"mix": False}, {"distil": False}, {"encoders": (1,)}, {"start": 0}, {"factor": 50}],
    ids=str,
)
def test_it_equals_a_dense_computation(change: dict[str, Any]) -> None:
    network, x, marks = case(PublishedInformerConfig(**(asdict(SMALL) | change)))
    with torch.no_grad():
        made = network(x, marks).numpy()
    dense = Dense(network)
    for row in range(len(x)):
        np.testing.assert_allclose(made[row], dense(x[row].numpy(), marks[row].numpy()), atol=1e-10)


def test_the_published_score_chooses_other_rows_than_the_samples_mean() -> None:
    from tracepaper.strategies.attention.masks import Mask
    from tracepaper.strategies.attention.probsparse import attend_sparsely, sample_keys

    query, key, value = torch.randn(
        3, 1, 1, 60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    key = key + 3.0  # the mean of the products is far from zero: the two scores differ
    samples = sample_keys(60, Mask.full(), factor=1, seed=3)
    ours, theirs = (
        attend_sparsely(query, key, value, Mask.full(), samples, factor=1, score=score).rows.active
        for score in ("sample_mean", "published")
    )
    assert set(ours[0, 0].tolist()) != set(theirs[0, 0].tolist())


def test_one_input_has_one_answer_and_another_seed_is_another_function() -> None:
    network, x, marks = case()
    assert torch.equal(network(x, marks), network(x, marks))
    other = PublishedInformer(PublishedInformerConfig(**(asdict(SMALL) | {"seed": 6}))).double()
    other.load_state_dict(network.state_dict())
    assert not torch.equal(network(x, marks), other.eval()(x, marks))


def test_every_weight_is_learnt() -> None:
    network, x, marks = case()
    network.train()(x, marks).square().mean().backward()
    assert all(part.grad is not None for part in network.parameters())
