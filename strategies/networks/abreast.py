"""Streams of several instruments abreast: one bar of each in one pass through the network.

To all layers but attention a bar of each of some streams is what a stretch of bars is: rows that
do not touch each other. In attention the streams are a dimension in front, over rings that lie
side by side in one piece of memory, so that nothing is copied to bring them together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.attention.cache import TailRing
from tracepaper.strategies.networks.state import LayerState, StreamState
from tracepaper.strategies.networks.stream import RESIDUAL, Advance, Past, StreamingNetwork
from tracepaper.strategies.types import BLOCK_BARS


class Abreast(NamedTuple):
    """Some instruments' states as one: rings with a dimension in front, and each state itself."""

    states: Sequence[StreamState]
    places: TailRing
    layers: Sequence[LayerState]

    def advance(self) -> None:
        """Count the bar just written in every state."""
        self.places.advance(1)
        rings = [self.places, *chain.from_iterable(self.layers)]
        for state in self.states:
            for ring, whole in zip(state.rings, rings, strict=True):
                ring.follow(whole)
            state.count += 1


class StateStack:
    """States whose rings lie side by side in memory, so that one pass can serve many of them."""

    def __init__(self, states: Sequence[StreamState]) -> None:
        self.states = list(states)
        self._rings = [
            TailRing.stacked(rings)
            for rings in zip(*(state.rings for state in states), strict=True)
        ]

    def abreast(self, start: int, stop: int) -> Abreast:
        """Return the states *start* … *stop* - 1 as one, moved to a common end of their rings."""
        states = self.states[start:stop]
        # Those that missed bars follow those that did not: in step with all, nothing moves.
        [(end, _)] = Counter(state.places.end for state in states).most_common(1)
        for state in states:
            if state.places.end != end:
                for ring in state.rings:
                    ring.move(end)
        places, *rest = [ring.over(ring.everything()[start:stop]) for ring in self._rings]
        for ring in (places, *rest):
            ring.follow(states[0].places)
        layers = [LayerState(*rest[at : at + 3]) for at in range(0, len(rest), 3)]
        return Abreast(states, places, layers)


class AbreastNetwork(StreamingNetwork):
    """A streaming network that also takes in one bar of each of several streams at once."""

    @torch.inference_mode()
    def advance_each(self, streams: Abreast, rows: Tensor, positions: NDArray[np.int64]) -> Advance:
        """Take in one bar of each stream: *rows* [stream, features] at *positions* [stream].

        Equal to ``advance`` of one bar on each within rounding; the answer's bars are the streams.
        """
        states, blocks = streams.states, positions // BLOCK_BARS
        columns = []
        for state, block in zip(states, blocks, strict=True):
            state.expire(int(block))
            columns += state.columns.take(block[None]).tolist()
        rows, device = rows.to(self.device), self.device
        rollout = torch.zeros(len(rows), 1, states[0].columns.width, device=device)
        own = torch.tensor(columns, device=device)
        rollout[torch.arange(len(rows), device=device), 0, own] = 1.0
        places = torch.from_numpy(positions).to(device)
        hidden, rollout, told = self._layers_abreast(streams, rows, places, rollout)
        visible = torch.tensor([state.count + 1 for state in states], device=device)
        confidence, history = self._figures(told, rollout, visible)
        streams.advance()
        for at, state in enumerate(states):
            state.history.push(history[at : at + 1])
            state.positions.push(places[at : at + 1])
            state.attended_pairs += self.config.layers * min(state.count, self.config.window)
        rollout = rollout.cpu()
        by_age = [
            state.columns.by_age(rollout[at : at + 1].numpy(), blocks[at : at + 1])
            for at, state in enumerate(states)
        ]
        outputs = self.network.read_out(hidden).cpu()
        return Advance(outputs, confidence.cpu(), np.concatenate(by_age))

    def _layers_abreast(
        self, streams: Abreast, rows: Tensor, places: Tensor, rollout: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run every layer on a bar of each stream; return what ``_layers`` has at its end.

        That is the last state, rollout [stream, width], and queries, keys and figures
        [layer, head, stream, …].
        """
        streams.places.write(places[:, None])
        past = Past(streams.places, [state.count for state in streams.states])
        hidden, phases = self.network.enter(rows[None], places)
        queries, keys, figures = [], [], []
        for block, layer in zip(self.network.layers(), streams.layers, strict=True):
            projected = block.project(hidden, phases)
            # [1, head, stream, dim] -> [stream, head, 1, dim]
            query, key, value = (x.transpose(0, 2) for x in projected)
            layer.write(key, value, rollout)
            seen = self._tile(past, layer, query, 0)
            hidden = block.finish(hidden, seen.output.transpose(0, 2))
            rollout = torch.lerp(seen.rollout, rollout, RESIDUAL)
            layer.advance(1)
            queries.append(projected.query[0])
            keys.append(projected.key[0])
            figures.append(seen.figures[:, :, 0].transpose(0, 1))
        return hidden, rollout[:, 0], [torch.stack(x) for x in (queries, keys, figures)]
