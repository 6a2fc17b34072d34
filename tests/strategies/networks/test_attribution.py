"""Every method of explanation of whole networks, against stored matrices in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dense_attention as reference
import pytest
import torch
from attention_cases import largest_score, tie_slack
from dense_attention import dense_rows
from models import moved
from torch import Tensor

from tracepaper.strategies.attention.layer import Layer, value_norms
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.methods import Rollout, flow
from tracepaper.strategies.attention.probsparse import MapRead, SparseRead
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

torch.set_num_threads(1)

TIME, HORIZON, PLACE = 44, 30, 1
HEADS = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
OPTIONS = {
    "as stored": Rollout(),
    "max": Rollout(fusion="max"),
    "min": Rollout(fusion="min", residual_weight=0.2),
    "heads": Rollout(head_weights=HEADS.tolist()),
    "upper layer": Rollout(start_layer=1),
    "discard": Rollout(discard_ratio=0.6),
    "max and discard": Rollout(fusion="max", discard_ratio=0.3, start_layer=1),
}


def network(kind: str) -> FlashNetwork | InformerNetwork:
    torch.manual_seed(5)
    flash_network: FlashNetwork | InformerNetwork
    if kind in {"informer", "distilling"}:
        flash_network = InformerNetwork(
            InformerConfig(
                features=5, dim=8, layers=2, heads=2, window=TIME, factor=2,
                distil=kind == "distilling",
            )
        )  # fmt: skip
    else:
        encoding = "alibi" if kind == "alibi" else "rope"
        mask = "window" if kind == "alibi" else kind
        flash_network = FlashNetwork(
            FlashConfig(
                features=5, dim=8, layers=2, heads=2, mask=mask, encoding=encoding,
                window=TIME if mask == "full" else 18,
            )
        )  # fmt: skip
    return moved(flash_network).double()


def window() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(1, TIME, 5, generator=generator, dtype=torch.float64)


def weights_of(model: Network, method: Rollout) -> Tensor:
    method = replace(method, horizon=HORIZON)
    rollout = model.explain(window(), torch.arange(TIME), method).rollout
    assert float(rollout.l1_error.max()) < 1e-5
    return rollout.weights[0, 0].double()


def stored(flash_network: FlashNetwork | InformerNetwork) -> list[Tensor | MapRead]:
    """Return each layer's matrix [1, head, time, time], and the maps of time between them."""
    tensors: list[Tensor | MapRead] = []
    for read in flash_network.trace(window(), torch.arange(TIME)).reads:
        if isinstance(read, MapRead):
            tensors.append(read)
        elif isinstance(read, SparseRead):
            tensors.append(dense_rows(read))
        else:
            assert isinstance(read, Layer)
            tensors.append(reference.layer_matrix(read)[0])
    return tensors


def walked(parts: list[Tensor | MapRead], fused: list[Tensor], options: Rollout) -> Tensor:
    """Carry the last row down through dense fused matrices [time, time] and maps of time."""
    layer = len(fused)
    row: Tensor | None = None
    for part in reversed(parts):
        if isinstance(part, MapRead):
            assert row is not None
            row = part.carry(row[None, None])[0, 0]
            continue
        layer -= 1
        time = part.shape[-1]
        if row is None:
            row = torch.eye(time, dtype=torch.float64)[-1]
        if layer < options.start_layer:
            continue
        mixed = options.residual_weight * torch.eye(time, dtype=torch.float64)
        mixed = mixed + (1.0 - options.residual_weight) * fused[layer]
        row = row @ (mixed / mixed.sum(dim=-1, keepdim=True))
    assert row is not None
    return row / row.sum()


def slacks(flash_network: FlashNetwork | InformerNetwork) -> list[float]:
    """Return how far entries of each layer may lie apart and be ties to discarding."""
    if isinstance(flash_network, InformerNetwork):
        return [1e-6, 1e-6]
    return [
        tie_slack(largest_score(read.query, read.key))
        for read in flash_network.trace(window(), torch.arange(TIME)).reads
        if isinstance(read, Layer)
    ]


def mask_of(flash_network: FlashNetwork | InformerNetwork) -> Mask:
    return flash_network.mask if isinstance(flash_network, FlashNetwork) else Mask.full()


def normalised(weights: Tensor) -> Tensor:
    totals = weights.sum(dim=-1, keepdim=True)
    return torch.where(totals > 0, weights / totals, torch.eye(len(weights), dtype=weights.dtype))


KINDS = ("window", "causal", "full", "alibi", "informer", "distilling")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", OPTIONS)
def test_rollout_with_any_option_equals_stored_matrices(kind: str, named: str) -> None:
    flash_network, options = network(kind), OPTIONS[named]
    parts = stored(flash_network)
    matrices = [part for part in parts if isinstance(part, Tensor)]
    shares = HEADS if named == "heads" else torch.full((2, 2), 0.5)
    fused = [
        reference.discard(
            reference.fuse(matrix, options.fusion, share.double()),
            mask_of(flash_network),
            options.discard_ratio,
            slack=slack,
        )[0]
        for matrix, share, slack in zip(matrices, shares, slacks(flash_network), strict=True)
    ]
    tensor = weights_of(flash_network, options)
    torch.testing.assert_close(tensor, walked(parts, fused, options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [Rollout(), Rollout(residual_weight=0.3)])
def test_norm_equals_stored_matrices(kind: str, options: Rollout) -> None:
    flash_network = network(kind)
    parts = stored(flash_network)
    matrices = [part for part in parts if isinstance(part, Tensor)]
    values = values_of(flash_network)
    fused = []
    for matrix, value, block in zip(matrices, values, flash_network.blocks, strict=True):
        weight = block.get_submodule("project_out").weight
        assert isinstance(weight, Tensor)
        lengths = value_norms(value, weight)
        fused.append(normalised((matrix * lengths[:, :, None]).mean(dim=1)[0]))
    tensor = weights_of(flash_network, replace(options, fusion="norm"))
    torch.testing.assert_close(tensor, walked(parts, fused, options), rtol=0, atol=1e-12)


def values_of(flash_network: FlashNetwork | InformerNetwork) -> list[Tensor]:
    """Return each layer's values [1, head, time, dim] by another road: states through norms."""
    values = []
    states: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, given: states.append(given[0]))
        if isinstance(flash_network, InformerNetwork)
        else block.get_submodule("attention_norm").register_forward_pre_hook(
            lambda _, given: states.append(given[0])
        )
        for block in flash_network.blocks
    ]
    flash_network(window())
    for hook in hooks:
        hook.remove()
    for depth, block in enumerate(flash_network.blocks):
        state = states[depth]
        mixed = block.get_submodule("project_in")(block.get_submodule("attention_norm")(state))
        values.append(mixed.unflatten(-1, (3, 2, -1))[..., 2, :, :].transpose(1, 2).detach())
    return values


def test_gradient_is_that_of_the_answer_by_every_entry_of_the_matrix() -> None:
    """One layer: bend each entry of the stored matrix by hand and ask the heads again."""
    torch.manual_seed(2)
    config = FlashConfig(features=5, dim=8, layers=1, heads=2, window=18)
    model = moved(FlashNetwork(config).double())
    [trace] = model.trace(window(), torch.arange(TIME)).reads
    assert isinstance(trace, Layer)
    assert trace.value is not None
    matrix = reference.attention_matrix(trace.query, trace.key, model.mask).detach()
    leaf = matrix.requires_grad_()
    state, _ = model.enter(window(), torch.arange(TIME))
    (block,) = model.layers()
    answer = model.read_out(block.finish(state, leaf @ trace.value)).mean[0, -1, PLACE]
    (slope,) = torch.autograd.grad(answer, leaf)
    row = (slope * matrix).clamp_min(0.0).mean(dim=1)[0, -1].detach()
    wanted = 0.5 * row / row.sum()
    wanted[-1] += 0.5
    tensor = weights_of(model, Rollout(fusion="gradient"))
    torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_follows_the_horizon_and_sums_to_one(kind: str) -> None:
    flash_network = network(kind)
    other = flash_network.explain(window(), torch.arange(TIME), Rollout(fusion="gradient")).rollout
    tensor = weights_of(flash_network, Rollout(fusion="gradient"))
    assert float(tensor.sum()) == pytest.approx(1.0, abs=1e-6)
    assert bool((tensor >= 0).all())
    assert float((other.weights[0, 0] - tensor).abs().max()) > 1e-4


def test_the_flow_among_the_newest_bars_is_that_of_all() -> None:
    reads = network("window").trace(window(), torch.arange(TIME)).reads
    whole = flow(reads, [TIME - 1]).weights["tokens"][0, 0, -30:]
    newest = flow(reads, [29], newest=30).weights["tokens"][0, 0]
    torch.testing.assert_close(newest, whole / whole.sum(), rtol=0, atol=1e-6)
    full = network("full").trace(window(), torch.arange(TIME)).reads
    with pytest.raises(AttentionInvalid, match="needs a mask that looks back"):
        flow(full, [29], newest=30)


def test_the_flow_of_a_network_is_the_last_rows_flow() -> None:
    flash_network = network("window")
    reads = flash_network.trace(window(), torch.arange(TIME)).reads
    wanted = flow(reads, [TIME - 1], Rollout(residual_weight=0.4)).weights["tokens"][0, 0]
    tensor = weights_of(flash_network, Rollout(fusion="flow", residual_weight=0.4))
    torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["window", "distilling"])
def test_layers_and_heads_that_are_not_there_are_refused(kind: str) -> None:
    with pytest.raises(AttentionInvalid, match="leaves nothing to explain; choose 0 to 1"):
        weights_of(network(kind), Rollout(start_layer=2))
    with pytest.raises(AttentionInvalid, match="Give 2 head weights"):
        weights_of(network(kind), Rollout(head_weights=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fusion": "lime"}, "There is no head fusion 'lime'; choose one of mean, max, min, norm"),
        ({"fusion": "flow", "start_layer": 1}, "A flow goes through all layers"),
        ({"fusion": "norm", "discard_ratio": 0.1}, "not by norm; set it to 0"),
        ({"fusion": "norm", "head_weights": (1.0, 0.0)}, "Head weights weigh a mean, not a norm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AttentionInvalid, match=sentence):
        Rollout(**options)


def test_a_network_and_a_method_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(AttentionInvalid, match="choose rollout"):
        weights_of(network("distilling"), Rollout(fusion="flow"))
