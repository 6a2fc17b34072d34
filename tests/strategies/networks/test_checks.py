"""What is planted in a network is found, and a network without a fault has none."""

from __future__ import annotations

import models
import pytest
import torch
from torch import Tensor

from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.checks import NetworkCheck, check_network
from tracepaper.strategies.networks.flash import Block, FlashNetwork

torch.set_num_threads(1)


def network(kind: str) -> Network:
    return models.small(kind, by=0.3, **({"encoding": "rope"} if kind == "flash" else {}))


def windows(made: Network) -> list[tuple[Tensor, Tensor]]:
    time = made.config.receptive_field
    rows = torch.randn(3, 1, time, 4, generator=torch.Generator().manual_seed(7))
    return [(one, torch.arange(100 * at, 100 * at + time)) for at, one in enumerate(rows)]


def examined(made: Network) -> NetworkCheck:
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = check_network(made, windows(made))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())
    return found


def block(made: Network, depth: int = 1) -> Block:
    assert isinstance(made, FlashNetwork)
    return list(made.layers())[depth]


@pytest.mark.parametrize(
    "kind", ["flash", "informer", "decoder", "multiscale", "cross", "trading", "lstm"]
)
def test_a_network_without_a_fault_has_none(kind: str) -> None:
    found = examined(network(kind))
    assert found.faults == ()
    assert len(found.heads) == {"lstm": 0, "cross": 8, "decoder": 12}.get(kind, 4)
    assert all(one.gradient > 0 for one in found.gradients)
    for layer in {one.layer for one in found.heads}:
        shares = [one.share for one in found.heads if one.layer == layer]
        assert sum(share for share in shares if share is not None) == pytest.approx(1.0)


def test_the_layer_that_overflows_is_named() -> None:
    made = network("flash")
    with torch.no_grad():
        made.get_parameter("blocks.1.mlp.rise.weight").fill_(3e38)
    found = examined(made)
    assert len(found.faults) == 1
    assert "Over the rows: Layer blocks.1.mlp.rise (Linear) produced" in found.faults[0]


def test_what_overflows_at_the_extremes_alone_is_found() -> None:
    made = network("flash")
    assert isinstance(made, FlashNetwork)
    with torch.no_grad():
        made.embed.weight.zero_()
        made.embed.bias.zero_()
        made.embed.weight[0] = 2e37  # four columns of 5 are more than a float holds
    calm = [(torch.zeros_like(rows), at) for rows, at in windows(made)]
    found = check_network(made, calm)
    assert any("rows at 5" in one for one in found.faults)


def test_a_dead_head_is_found() -> None:
    made = network("flash")
    with torch.no_grad():
        block(made).project_out.weight[:, :4] = 0.0  # the columns that read head 0
    found = examined(made)
    assert found.faults == ("Layer 1, head 0: it is dead, and moves 0.00% of its layer's output.",)


def test_a_head_that_collapsed_onto_one_bar_is_found() -> None:
    made = network("flash")
    with torch.no_grad():
        block(made).project_in.weight[4:8] *= 3_000.0  # the queries of head 1
    assert examined(made).faults == ("Layer 1, head 1: it has collapsed onto one bar.",)


def test_a_head_that_attends_evenly_whatever_it_sees_is_found() -> None:
    made = network("flash")
    with torch.no_grad():
        block(made, 0).project_in.weight[:4] = 0.0  # the queries of head 0
        block(made, 0).project_in.bias[:4] = 0.0
    found = examined(made)
    assert found.faults[0] == "Layer 0, head 0: it attends evenly, whatever the rows are."


def test_parts_that_no_gradient_reaches_are_named() -> None:
    made = network("flash")
    with torch.no_grad():
        for layer in (0, 1):
            block(made, layer).project_out.weight.zero_()
            made.get_parameter(f"blocks.{layer}.mlp.fall.weight").zero_()
        block(made, 0).project_out.bias.zero_()
    assert isinstance(made, FlashNetwork)
    with torch.no_grad():
        assert isinstance(made.norm, torch.nn.LayerNorm)
        made.norm.weight.zero_()
    found = examined(made)
    lost = [one.part for one in found.gradients if one.fault]
    assert lost == ["embed", "blocks.0", "blocks.1"]
    assert "embed: no gradient reaches it." in found.faults
