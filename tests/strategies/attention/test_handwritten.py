"""Attention that a module writes out is captured by its own matrices, or refused with the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tracepaper.strategies.attention import MatrixRead, Rollout, capture
from tracepaper.strategies.errors import AttentionInvalid

TOKENS, WIDTH, HEADS, LAYERS, WORDS = 12, 32, 4, 2, 97
Product = Callable[[Tensor, Tensor], Tensor]
HIDDEN = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def rolled(matrices: list[Tensor]) -> Tensor:
    """Return every row [batch, query, key] of the rollout of stored *matrices*."""
    unit = torch.eye(TOKENS, dtype=torch.float64)
    result = unit.expand(len(matrices[0]), -1, -1)
    for matrix in matrices:
        result = (0.5 * unit + 0.5 * matrix.double().mean(dim=1)) @ result
    return result


class Written(nn.Module):
    """One layer as nanoGPT writes it, which keeps its matrices; *product* is what follows."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.attn, self.dropout = nn.Linear(WIDTH, 3 * WIDTH), nn.Dropout(0.1)
        self.product, self.matrices = product, [torch.empty(0)]

    def forward(self, x: Tensor) -> Tensor:
        split = self.attn(x).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, dim=1)
        query, key, value = split
        scores = (query @ key.transpose(-2, -1)) * 3.0
        shares = functional.softmax(scores.masked_fill(HIDDEN, -torch.inf), dim=-1)
        self.matrices = [shares]
        output = self.product(self.dropout(shares), value)
        return output.transpose(1, 2).flatten(2)


class Head(nn.Module):
    """One head as a module, as courses write it."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 3 * WIDTH // HEADS)
        self.matrix = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).chunk(3, dim=-1)
        scores = 3.0 * query @ key.mT
        self.matrix = scores.masked_fill(HIDDEN, -torch.inf).softmax(dim=-1)
        return self.matrix @ value


class SeparateHeads(nn.Module):
    """The heads of a layer as modules over one input."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(HEADS))

    @property
    def matrices(self) -> list[Any]:
        return [torch.stack([head.matrix for head in self.heads], dim=1)]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)


class Blocks(nn.Module):
    """Two layers with a residual stream."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def one_batch_of_heads(shares: Tensor, value: Tensor) -> Tensor:
    """Return the product as BLOOM writes it."""
    flat = shares.to(value.dtype).view(-1, *shares.shape[2:])
    return torch.bmm(flat, value.flatten(0, 1)).view(value.shape)


FORMS: dict[str, Callable[[], nn.Module]] = {
    "a product": lambda: Written(lambda shares, value: shares @ value),
    "an einsum": lambda: Written(lambda s, v: torch.einsum("bhqk,bhkd->bhqd", s, v)),
    "one batch of heads": lambda: Written(one_batch_of_heads),
    "a module for each head": SeparateHeads,
}


@pytest.mark.parametrize("form", FORMS)
def test_what_a_module_writes_out_is_explained_by_its_own_matrices(form: str) -> None:
    model, x = Blocks(FORMS[form]).double().eval(), torch.randn(2, TOKENS, WIDTH).double()
    with torch.no_grad():
        before = model(x)
        with capture(model) as captured:
            assert torch.equal(model(x), before)
    assert all(isinstance(read, MatrixRead) for read in captured.reads)
    assert captured.skipped == []
    stored = [matrix for layer in model.layers for matrix in layer.matrices]  # type: ignore[union-attr]
    weights = captured.rollout(range(TOKENS)).weights["tokens"]
    assert (weights - rolled(stored)).abs().max() < 1e-12
    with pytest.raises(AttentionInvalid, match="only its matrix is captured"):
        captured.passages({"first": range(3)})
    with pytest.raises(AttentionInvalid, match="has no values"):
        captured.rollout([3], Rollout(fusion="norm"))


def mixed_heads(shares: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("hg,bgqk->bhqk", torch.full((HEADS, HEADS), 0.25), shares) @ value


def dropped(shares: Tensor, value: Tensor) -> Tensor:
    return shares.masked_fill(torch.eye(TOKENS) > 0, 0.0) @ value


def folded(shares: Tensor, value: Tensor) -> Tensor:
    return (shares.flatten(0, 1).softmax(dim=-1) @ value.flatten(0, 1)).view(value.shape)


def twice(shares: Tensor, value: Tensor) -> Tensor:
    return shares @ (shares @ value)


def of_some(shares: Tensor, value: Tensor) -> Tensor:
    return (shares[..., :5].softmax(dim=-1) @ value[:, :, :5]).expand(value.shape)


@pytest.mark.parametrize(
    ("product", "cause"),
    [
        (mixed_heads, "no left factor of a product"),
        (dropped, "rows do not sum to 1"),
        (folded, "no axis of heads"),
        (of_some, "keys are not the tokens"),
        (twice, "values are not those of its keys"),
    ],
)
def test_what_a_module_writes_otherwise_is_refused_with_the_cause(
    product: Product, cause: str
) -> None:
    model = Blocks(lambda: Written(product)).eval()
    with pytest.raises(AttentionInvalid, match=cause), torch.no_grad(), capture(model):
        model(torch.randn(2, TOKENS, WIDTH))


class Mixer(nn.Module):
    """A layer without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Tanh()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def test_the_layers_that_a_hybrid_skips_are_named() -> None:
    model = Blocks(Mixer)
    model.layers[1] = Written(lambda shares, value: shares @ value)
    model.eval()
    with torch.no_grad(), capture(model) as captured:
        model(torch.randn(2, TOKENS, WIDTH))
    assert captured.skipped == ["layers.0"]
    with pytest.warns(UserWarning, match=r"No attention of layers\.0 was captured") as warned:
        rolled_out = [captured.rollout() for _ in range(2)]
    assert len(warned) == 1 < len(rolled_out)
    assert len(captured.reads) == 1


COMMON: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
}
POSITIONS = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
SIZES = {"vocab_size": WORDS, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "BLOOM": ("BloomModel", SIZES),
    "MPT": (
        "MptModel",
        {"vocab_size": WORDS, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS},
    ),
    "DeBERTa": ("DebertaModel", {**COMMON, **POSITIONS}),
    "DeBERTa v2": ("DebertaV2Model", {**COMMON, **POSITIONS}),
    "XLNet": (
        "XLNetModel",
        {"vocab_size": WORDS, "d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": 48},
    ),
    "Longformer": (
        "LongformerModel",
        {**COMMON, "attention_window": 4, "max_position_embeddings": 64},
    ),
}


@pytest.mark.parametrize("form", MODELS)
def test_models_that_write_attention_out_are_explained_or_told_the_way(form: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    name, options = MODELS[form]
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**options)).eval().requires_grad_(False)
    padding = torch.ones(2, TOKENS, dtype=torch.long)
    padding[1, :4] = 0
    given = {"input_ids": torch.randint(3, WORDS, (2, TOKENS)), "attention_mask": padding}
    if form == "Longformer":  # whose matrices are bands
        with pytest.raises(AttentionInvalid, match=r"no left factor.* MatrixRead"), capture(model):
            model(**given)
        return
    before = model(**given)[0]
    with capture(model) as captured:
        assert torch.equal(model(**given)[0], before)
    stored = list(model(**given, output_attentions=True).attentions)
    weights = captured.rollout([TOKENS - 1]).weights["tokens"].double()
    assert (weights - rolled(stored)[:, -1:]).abs().max() < 1e-6
