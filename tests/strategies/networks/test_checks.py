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


def windows(model: Network) -> list[tuple[Tensor, Tensor]]:
    time = model.config.receptive_field
    rows = torch.randn(3, 1, time, 4, generator=torch.Generator().manual_seed(7))
    return [(row, torch.arange(100 * at, 100 * at + time)) for at, row in enumerate(rows)]


def examined(model: Network) -> NetworkCheck:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check = check_network(model, windows(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    return check


def block(flash_network: Network, depth: int = 1) -> Block:
    assert isinstance(flash_network, FlashNetwork)
    return list(flash_network.layers())[depth]


@pytest.mark.parametrize(
    "kind", ["flash", "informer", "decoder", "multiscale", "cross", "trading", "lstm"]
)
def test_a_network_without_a_fault_has_none(kind: str) -> None:
    check = examined(network(kind))
    assert check.faults == ()
    assert len(check.heads) == {"lstm": 0, "cross": 8, "decoder": 12}.get(kind, 4)
    assert all(gradient.gradient > 0 for gradient in check.gradients)
    for layer in {head.layer for head in check.heads}:
        shares = [head_check.share for head_check in check.heads if head_check.layer == layer]
        assert sum(share for share in shares if share is not None) == pytest.approx(1.0)


def test_the_layer_that_overflows_is_named() -> None:
    model = network("flash")
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.rise.weight").fill_(3e38)
    check = examined(model)
    assert len(check.faults) == 1
    assert "Over the rows: Layer blocks.1.mlp.rise (Linear) produced" in check.faults[0]


def test_what_overflows_at_the_extremes_alone_is_found() -> None:
    flash_network = network("flash")
    assert isinstance(flash_network, FlashNetwork)
    with torch.no_grad():
        flash_network.embed.weight.zero_()
        flash_network.embed.bias.zero_()
        flash_network.embed.weight[0] = 2e37  # four columns of 5 are more than a float holds
    calm = [(torch.zeros_like(rows), at) for rows, at in windows(flash_network)]
    check = check_network(flash_network, calm)
    assert any("rows at 5" in fault for fault in check.faults)


def test_a_dead_head_is_found() -> None:
    model = network("flash")
    with torch.no_grad():
        block(model).project_out.weight[:, :4] = 0.0  # the columns that read head 0
    check = examined(model)
    assert check.faults == ("Layer 1, head 0: it is dead, and moves 0.00 % of its layer's output.",)


def test_a_head_that_collapsed_onto_one_bar_is_found() -> None:
    model = network("flash")
    with torch.no_grad():
        block(model).project_in.weight[4:8] *= 3_000.0  # the queries of head 1
    assert examined(model).faults == ("Layer 1, head 1: it has collapsed onto one bar.",)


def test_a_head_that_attends_evenly_whatever_it_sees_is_found() -> None:
    model = network("flash")
    with torch.no_grad():
        block(model, 0).project_in.weight[:4] = 0.0  # the queries of head 0
        block(model, 0).project_in.bias[:4] = 0.0
    check = examined(model)
    assert check.faults[0] == "Layer 0, head 0: it attends evenly, whatever the rows are."


def test_parts_that_no_gradient_reaches_are_named() -> None:
    model = network("flash")
    with torch.no_grad():
        for layer in (0, 1):
            block(model, layer).project_out.weight.zero_()
            model.get_parameter(f"blocks.{layer}.mlp.fall.weight").zero_()
        block(model, 0).project_out.bias.zero_()
    assert isinstance(model, FlashNetwork)
    with torch.no_grad():
        assert isinstance(model.norm, torch.nn.LayerNorm)
        model.norm.weight.zero_()
    check = examined(model)
    lost = [gradient_check.part for gradient_check in check.gradients if gradient_check.fault]
    assert lost == ["embed", "blocks.0", "blocks.1"]
    assert "embed: no gradient reaches it." in check.faults
