"""A network's layers in numpy, by the names of its weights, to write an architecture down again."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import nn

Matrix = NDArray[np.float64]


class DenseLayers:
    """Linear maps, layer norms and GELU of rows [row, dim], by the weights of *network*."""

    def __init__(self, network: nn.Module) -> None:
        named = network.state_dict() | dict(network.named_buffers())
        self.weights = {name: value.numpy() for name, value in named.items()}

    def linear(self, name: str, x: Matrix) -> Matrix:
        result: Matrix = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return result

    def norm(self, name: str, x: Matrix) -> Matrix:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        result: Matrix = scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return result

    def feed_forward(self, name: str, x: Matrix) -> Matrix:
        hidden = self.linear(f"{name}.rise", x)
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        return self.linear(f"{name}.fall", hidden)
