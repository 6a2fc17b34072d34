"""Attention flow against another library's maximum flow, and its bounds."""

from __future__ import annotations

import dense_attention as reference
import networkx as nx
import pytest
import torch
from attention_cases import case

from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import flow
from tracepaper.strategies.errors import AttentionInvalid


@pytest.mark.parametrize("mask", [Mask.full(), Mask(), Mask.window(3)])
def test_flow_equals_networkx(mask: Mask) -> None:
    time, row = 7, 5
    sample = case(mask, time=time, layers=2, size=2.0)
    graph = nx.DiGraph()
    for depth, matrix in enumerate(sample.matrices):
        mixed = 0.5 * torch.eye(time) + 0.5 * reference.fuse(matrix, "mean")[0]
        for query in range(time):
            for key in range(time):
                graph.add_edge((depth + 1, query), (depth, key), capacity=float(mixed[query, key]))
    flows = torch.tensor([nx.maximum_flow_value(graph, (2, row), (0, bar)) for bar in range(time)])
    result = flow(sample.layers, [row]).weights["tokens"]
    torch.testing.assert_close(result[0, 0], (flows / flows.sum()).double(), rtol=0, atol=1e-5)


def test_flow_through_one_layer_is_its_row() -> None:
    sample = case(Mask(), time=20, layers=1, batch=2)
    result = flow(sample.layers, [3, 19]).weights["tokens"]
    wanted = reference.rollout(sample.matrices, sample.mask)[:, [3, 19]]
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5)


def test_flow_of_a_long_sequence_is_refused() -> None:
    sample = case(Mask(), time=257, layers=1)
    with pytest.raises(AttentionInvalid, match="use at most 256 or rollout"):
        flow(sample.layers, [3]).weights["tokens"]
