"""The Informer with its decoder, held against a dense computation of its own in numpy, float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dense import DenseLayers, Matrix
from models import moved

from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

torch.set_num_threads(1)
SMALL = InformerConfig(
    features=4, dim=8, layers=3, heads=2, window=41, factor=1, horizons=(2, 7, 30),
    decoder_layers=2, start_token=9, seed=5,
)  # fmt: skip
EVERY: dict[str, Any] = {"factor": 20}
"""So many queries attend that none is left out."""


def network(config: InformerConfig = SMALL) -> InformerNetwork:
    torch.manual_seed(1)
    return moved(InformerNetwork(config).double())


def window(config: InformerConfig = SMALL) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(1, config.window, config.features, generator=generator, dtype=torch.float64)


def softmax(scores: Matrix) -> Matrix:
    power: Matrix = np.exp(scores - scores.max(-1, keepdims=True))
    matrix: Matrix = power / power.sum(-1, keepdims=True)
    return matrix


class Dense(DenseLayers):
    """The architecture written down a second time: dense, one window, one head, one row a loop."""

    def __init__(self, informer_network: InformerNetwork) -> None:
        super().__init__(informer_network)
        self.config = informer_network.config
        self.maps: list[tuple[str, Matrix]] = []
        """Of the encoder, in forward order: an attention's heads, or a map of time."""
        self.decoder: list[tuple[Matrix, Matrix]] = []  # heads of each layer: own, and the read

    def sparse(
        self, parts: tuple[Matrix, Matrix, Matrix], drawn: Matrix, always: range, *, masked: bool
    ) -> tuple[Matrix, Matrix]:
        """Return the values read [row, dim], and each head's matrix [head, row, row]."""
        time, heads = len(parts[0]), self.config.heads
        size = self.config.dim // heads
        top = min(time, self.config.factor * math.ceil(math.log(time)))
        read, matrices = np.zeros_like(parts[0]), []
        for head in range(heads):
            q, k, v = (part[:, head * size : (head + 1) * size] for part in parts)
            products = q @ k.T
            spread = np.array(
                [products[r, drawn[r]].max() - products[r, drawn[r]].mean() for r in range(time)]
            )
            spread[list(always)] = np.inf
            matrix = np.zeros((time, time))
            for row in range(time):
                count = row + 1 if masked else time
                matrix[row, :count] = 1 / count
            for row in np.argsort(-spread, kind="stable")[:top]:
                count = row + 1 if masked else time
                matrix[row, :count] = softmax(products[row, :count] / math.sqrt(size))
            read[:, head * size : (head + 1) * size] = matrix @ v
            matrices.append(matrix)
        return read, np.array(matrices)

    def encode(self, x: Matrix) -> Matrix:
        config = self.config
        state = self.linear("embed", x) + self.weights["place"]
        for depth in range(config.layers):
            if depth:
                state = self.distil(f"distillings.{depth - 1}", state)
            name = f"blocks.{depth}"
            mixed = self.linear(f"{name}.project_in", self.norm(f"{name}.attention_norm", state))
            query, key, value = np.split(mixed, 3, axis=1)
            always = range(len(state) - 1, len(state))
            read, heads = self.sparse(
                (query, key, value), self.weights[f"keys_{depth}"], always, masked=False
            )
            self.maps.append(("heads", heads))
            state = state + self.linear(f"{name}.project_out", read)
            state = state + self.feed_forward(name, self.norm(f"{name}.mlp_norm", state))
        return self.norm("norm", state)

    def distil(self, name: str, x: Matrix) -> Matrix:
        kernel, time = self.weights[f"{name}.convolution.weight"], len(x)
        mixed, taps = np.zeros_like(x), np.zeros((time, time))
        for row in range(time):
            for tap in range(3):
                if 0 <= (at := row + tap - 1) < time:
                    term = kernel[:, :, tap] @ x[at]
                    mixed[row] += term
                    taps[row, at] = np.linalg.norm(term)
        self.maps.append(("map", taps / taps.sum(1, keepdims=True)))
        scaled = self.norm(f"{name}.norm", mixed + self.weights[f"{name}.convolution.bias"])
        active = np.where(scaled > 0, scaled, np.expm1(np.minimum(scaled, 0)))
        pooled, pools = [], np.zeros(((time + 1) // 2, time))
        for row, middle in enumerate(range(0, time, 2)):
            first = max(middle - 1, 0)
            part = active[first : middle + 2]
            pooled.append(part.max(0))
            for chosen in part.argmax(0):
                pools[row, first + chosen] += 1 / x.shape[1]
        self.maps.append(("map", pools))
        return np.stack(pooled)

    def __call__(self, x: Matrix) -> Matrix:
        config, start = self.config, self.config.start_token
        memory = self.encode(x)
        ahead = np.zeros((len(config.horizons), x.shape[1]))
        written = np.concatenate([x[-start:], ahead])
        state = self.linear("decoder.embed", written) + self.weights["decoder.code"]
        size = config.dim // config.heads
        for depth in range(config.decoder_layers):
            name = f"decoder.layers.{depth}"
            query, key, value = np.split(self.linear(f"{name}.within.project_in", state), 3, axis=1)
            drawn = self.weights[f"{name}.samples"]
            always = range(start, len(state))
            read, self_matrix = self.sparse((query, key, value), drawn, always, masked=True)
            moved = state + self.linear(f"{name}.within.project_out", read)
            state = self.norm(f"{name}.within.attention_norm", moved)
            name = f"{name}.across"
            query = np.split(self.linear(f"{name}.project_in", state), 3, axis=1)[0]
            _, key, value = np.split(self.linear(f"{name}.project_in", memory), 3, axis=1)
            across = []
            for head in range(config.heads):
                at = slice(head * size, (head + 1) * size)
                across.append(softmax(query[:, at] @ key[:, at].T / math.sqrt(size)))
                read[:, at] = across[-1] @ value[:, at]
            moved = state + self.linear(f"{name}.project_out", read)
            state = self.norm(f"{name}.attention_norm", moved)
            moved = state + self.feed_forward(f"{name}.mlp", state)
            state = self.norm(f"{name}.mlp_norm", moved)
            self.decoder.append((self_matrix, np.array(across)))
        raw = self.linear("heads.project", self.norm("decoder.norm", state[start:]))
        matrix: Matrix = raw[:, 0]  # of each placeholder the mean return
        return matrix

    def rollout(self, share: float, *, lowest: int = 0) -> Matrix:
        """Return the placeholders' rollout over the bars; *share* is kept."""
        start, count = self.config.start_token, self.decoder[0][0].shape[1]
        tokens = np.zeros(count)
        tokens[start:] = 1 / (count - start)
        memory = np.zeros(self.decoder[0][1].shape[2])
        for self_matrix, across in self.decoder[::-1]:
            memory = memory + (1 - share) * tokens @ across.mean(0)
            tokens = share * tokens
            tokens = share * tokens + (1 - share) * tokens @ self_matrix.mean(0)
        layer = self.config.layers
        for kind, matrix in self.maps[::-1]:
            if kind == "map":
                memory = memory @ matrix
                continue
            layer -= 1
            if layer >= lowest:
                memory = share * memory + (1 - share) * memory @ matrix.mean(0)
        memory[-start:] += tokens[:start]
        weights: Matrix = memory / memory.sum()
        return weights


@pytest.mark.parametrize("change", [{}, EVERY, {"start_token": 1}, {"horizons": (5,)}], ids=str)
def test_forecast_rollout_and_confidence_equal_a_dense_computation(change: dict[str, Any]) -> None:
    config = replace(SMALL, **change)
    informer_network, x = network(config), window(config)
    dense = Dense(informer_network)
    forecast = dense(x[0].numpy())
    with torch.no_grad():
        outputs = informer_network(x)
        explained = informer_network.explain(x, torch.arange(config.window))
    assert outputs.mean.shape == (1, 1, len(config.horizons))
    assert outputs.direction_logits.shape == (1, 1, len(config.horizons), 3)
    np.testing.assert_allclose(outputs.mean[0, 0].numpy(), forecast, rtol=0, atol=1e-10)
    torch.testing.assert_close(explained.outputs.mean, outputs.mean, rtol=0, atol=1e-12)
    weights = explained.rollout.weights[0, 0].numpy()
    np.testing.assert_allclose(weights, dense.rollout(0.5), rtol=0, atol=1e-10)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    wanted = [rows[:, -1:] for kind, rows in dense.maps if kind == "heads"]
    for pair in dense.decoder:
        wanted += [rows[:, config.start_token :] for rows in pair]
    for sure, rows in zip(explained.confidence.numpy(), wanted, strict=True):
        np.testing.assert_allclose(sure, confidence(rows), rtol=0, atol=1e-10)


def confidence(rows: Matrix) -> Matrix:
    """Return the mean over rows [head, row, key] of one less their entropy over what they see."""
    entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(2)
    matrix: Matrix = (1 - entropy / np.log((rows > 0).sum(2))).mean(1)
    return matrix


def test_residual_and_start_layer_are_those_of_the_stored_matrices() -> None:
    informer_network, x = network(), window()
    dense = Dense(informer_network)
    dense(x[0].numpy())
    for share, lowest in ((0.2, 0), (0.7, 2)):
        options = Rollout(residual_weight=share, start_layer=lowest)
        method = options
        rollout = informer_network.explain(x, torch.arange(SMALL.window), method).rollout
        wanted = dense.rollout(share, lowest=lowest)
        np.testing.assert_allclose(rollout.weights[0, 0], wanted, rtol=0, atol=1e-10)


def test_each_placeholder_stands_at_the_bar_that_it_answers() -> None:
    config = replace(SMALL, clock=("week",), interval_minutes=60)
    model = network(config)
    assert model.decoder is not None
    assert model.clock is not None
    rows = [*range(32, 41), 40 + 2, 40 + 7, 40 + 30]
    exponents = 10_000.0 ** -(np.arange(4) / 4)
    angles = np.array(rows)[:, None] * exponents
    code = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(model.decoder.get_buffer("code"), code, rtol=0, atol=1e-6)
    x = window(config)
    first = model.decoder.enter(x)[0, 9:] - model.decoder.get_buffer("code")[9:]
    torch.testing.assert_close(first, model.decoder.embed.bias.expand(3, -1))  # nothing of a bar
    inputs: list[torch.Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(x, torch.arange(100, 141))
    hook.remove()
    wanted = model.decoder.enter(x) + model.clock(torch.tensor([100 + row for row in rows]))
    torch.testing.assert_close(inputs[0], wanted)


def test_no_placeholder_sees_a_later_one() -> None:
    config = replace(SMALL, **EVERY)
    x = window(config)
    near, far = network(config), network(replace(config, horizons=(2, 7, 300)))
    far.load_state_dict(near.state_dict())
    with torch.no_grad():
        nearer, other = near(x).mean[0, 0], far(x).mean[0, 0]
    torch.testing.assert_close(nearer[:2], other[:2], rtol=0, atol=1e-12)
    assert abs(float(nearer[2] - other[2])) > 1e-6
