"""A rollout is that of the model's own matrices, or it is refused: ways in which people attend.

Each row is one way. The chain of reads is proved by what each tensor was computed from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from tracepaper.strategies.attention import capture
from tracepaper.strategies.errors import AttentionInvalid

WIDTH, HEADS, TOKENS = 32, 4, 12
SEEN = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
Form = Callable[[Tensor, Tensor, Tensor], Tensor]
sdpa = functools.partial(functional.scaled_dot_product_attention, is_causal=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(7)


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~SEEN, -torch.inf)


class Mixing(nn.Module):
    """One layer by *form*; what it must be explained by is kept in ``matrices``."""

    matrices: list[Tensor]

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.form, self.matrices = form, []
        with torch.no_grad():
            self.project.weight.mul_(4)

    def split(self, x: Tensor) -> list[Tensor]:
        parts = self.project(x).chunk(3, dim=-1)
        return [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        if x.shape[1] == TOKENS:
            self.matrices.append(scores_of(query, key).softmax(dim=-1))
        return self.out(self.form(query, key, value).transpose(1, 2).flatten(2))


class Layers(nn.Module):
    """Layers, one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(self.norm(x))
        return x


class By(nn.Module):
    """A model whose forward pass is the function *run* of itself and its input."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.ModuleList(part) if isinstance(part, list) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def by(form: Form, count: int = 2) -> list[Mixing]:
    return [Mixing(form) for _ in range(count)]


def written(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scores_of(query, key).softmax(dim=-1) @ value


def reused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    matrix = scores_of(query, key).softmax(dim=-1)
    output = matrix @ value
    matrix.fill_(1.0)
    return output


def in_turn(axis: int) -> Form:
    """Return attention once for each head or each sequence."""
    return lambda *given: torch.cat(
        [sdpa(*each) for each in zip(*(x.split(1, dim=axis) for x in given), strict=True)], dim=axis
    )


def by_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attend = functional.scaled_dot_product_attention
    return torch.cat([attend(part, key, value) for part in query.chunk(3, dim=2)], dim=2)


def differential(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    (one, other), (first, second) = query.chunk(2, dim=-1), key.chunk(2, dim=-1)
    return sdpa(one, first, value) - 0.3 * sdpa(other, second, value)


def flexible(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    output = flex_attention(query, key, value)  # by its name, as people call it
    assert isinstance(output, Tensor)
    return output


def by_exponentials(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    shares = scores_of(query, key).exp()
    return shares / shares.sum(dim=-1, keepdim=True) @ value


def talking(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mixed = torch.einsum(
        "hg,bgij->bhij", torch.rand(HEADS, HEADS), scores_of(query, key).softmax(dim=-1)
    )
    return mixed @ value


def summed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (scores_of(query, key).softmax(dim=-1)[..., None] * value[:, :, None]).sum(dim=3)


def key_reused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key = key.contiguous()
    output = sdpa(query, key, value)
    key.zero_()
    return output


RIGHT: dict[str, Form] = {
    "by a partial": sdpa,
    "by torch.ops": lambda q, k, v: torch.ops.aten.scaled_dot_product_attention(
        q, k, v, None, 0.0, True
    ),
    "written out": written,
    "a matrix that is used again": reused,
}
WRONG: dict[str, tuple[Form, str]] = {
    "each head in turn": (in_turn(1), "does not read what"),
    "each sequence in turn": (in_turn(0), "have not all one batch"),
    "queries in blocks": (by_blocks, "have not all the same tokens"),
    "differential": (differential, "does not read what"),
    "by flex_attention": (flexible, "layers.1 calls flex_attention"),
    "by exponentials": (by_exponentials, "no softmax of torch"),
    "heads that are mixed": (talking, "no left factor"),
    "the transposed product": (
        lambda q, k, v: (v.mT @ scores_of(q, k).softmax(dim=-1).mT).mT,
        "no left factor",
    ),
    "a sum in place of a product": (summed, "no left factor"),
    "a key that is written over": (key_reused, "has written into its query, key or value"),
}


def tokens() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH)


def check(model: nn.Module, x: Tensor, matrices: Callable[[], list[Tensor]]) -> None:
    """Hold the rollout of *model* to the *matrices* that it stored."""
    model.eval()
    with torch.no_grad(), capture(model) as captured:
        model(x)
    unit = torch.eye(TOKENS)
    wanted = unit.expand(len(x), -1, -1)
    for matrix in matrices():
        wanted = (0.5 * unit + 0.5 * matrix.mean(dim=1)) @ wanted
    weights = captured.rollout(range(TOKENS)).weights["tokens"]
    assert (weights - wanted).abs().max() < 2e-6


def stored(model: nn.Module) -> Callable[[], list[Tensor]]:
    """Return the matrices that the attentions of *model* keep, the lowest first."""
    return lambda: [
        matrix
        for module in model.modules()
        if isinstance(module, Mixing)
        for matrix in module.matrices
    ]


@pytest.mark.parametrize("form", RIGHT)
def test_a_layer_is_explained_as_it_attends(form: str) -> None:
    model = Layers(Mixing(sdpa), Mixing(RIGHT[form]), Mixing(sdpa))
    check(model, tokens(), stored(model))


def roll_out(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), capture(model.eval()) as captured:
        model(x)
    captured.rollout()


def refuse(model: nn.Module, x: Tensor, sentence: str) -> None:
    with pytest.raises(AttentionInvalid, match=sentence):
        roll_out(model, x)


@pytest.mark.parametrize("form", WRONG)
def test_a_layer_that_attends_otherwise_is_refused_with_the_cause(form: str) -> None:
    wrong, sentence = WRONG[form]
    refuse(Layers(Mixing(sdpa), Mixing(wrong), Mixing(sdpa)), tokens(), sentence)


def in_place(model: Any, x: Tensor) -> Tensor:
    x = x.clone()
    for layer in model.layers:
        x += layer(x)
    return x


def in_place_of_a_view(model: Any, x: Tensor) -> Tensor:
    x = x.clone()
    for layer in model.layers:
        x[:, :].add_(layer(x))
    return x


def through_a_buffer(model: Any, x: Tensor) -> Tensor:
    for layer in model.layers:
        buffer = torch.empty_like(x)
        buffer[:] = layer(x)
        x = x + buffer
    return x


class Unseen(torch.autograd.Function):
    """An operation that no mode sees, as a scripted function or a kernel of a package is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        del ctx
        return slopes[0]


def unseen(model: Any, x: Tensor) -> Tensor:
    return Unseen.apply(x + model.layer(x))  # type: ignore[no-untyped-call]


def shared(model: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + model.layer(x)
    return x


def with_places(model: Any, x: Tensor) -> Tensor:
    for layer in model.layers:
        y, matrix = layer(x + model.places, x + model.places, x, average_attn_weights=False)
        model.stored.append(matrix)
        x = x + y
    return x


def routed(model: Any, x: Tensor) -> Tensor:
    """Experts, as many as tokens, weighed by a softmax, and one that reads other experts."""
    x = model.layers(x)
    return model.route(x).softmax(dim=-1) @ model.experts


MODELS: dict[str, Callable[[], Any]] = {
    "a residual in place": lambda: By(in_place, layers=by(written)),
    "a residual in place of a view": lambda: By(in_place_of_a_view, layers=by(written)),
    "a residual through a buffer": lambda: By(through_a_buffer, layers=by(written)),
    "an operation that is not seen": lambda: nn.Sequential(
        *(By(unseen, layer=layer) for layer in by(sdpa))
    ),
    "a layer that is called again": lambda: By(shared, layer=Mixing(written)),
    "experts": lambda: By(
        routed,
        layers=Layers(*by(written)),
        route=nn.Linear(WIDTH, TOKENS),
        experts=nn.Parameter(torch.randn(TOKENS, WIDTH)),
    ),
}


@pytest.mark.parametrize("form", MODELS)
def test_a_model_is_explained_as_it_reads(form: str) -> None:
    model = MODELS[form]()
    check(model, tokens(), stored(model))


def test_places_that_are_added_by_two_expressions_are_of_one_sequence() -> None:
    layers = [nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2)]
    model = By(with_places, layers=layers, places=nn.Parameter(torch.randn(TOKENS, WIDTH)))
    matrices: list[Tensor] = []
    vars(model)["stored"] = matrices
    check(model, tokens(), lambda: matrices)


def windows(model: Any, x: Tensor) -> Tensor:
    """Attention in windows of tokens that are shifted, as Swin has them."""
    y = model.layer(x.roll(1, dims=1).reshape(-1, TOKENS // 3, WIDTH))
    return y.reshape(x.shape).roll(-1, dims=1)


def along_both_axes(model: Any, x: Tensor) -> Tensor:
    """Attention along the rows of a square grid and along its columns."""
    for row, column in zip(model.rows, model.columns, strict=True):
        for layer, is_column in ((row, False), (column, True)):
            split = layer.split(x.transpose(0, 1) if is_column else x)
            y = functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
            x = x + (y.transpose(0, 1) if is_column else y)
    return x


def a_row_of_the_first(model: Any, x: Tensor) -> Tensor:
    x = model.layers[0](x, x, x)[0]
    return model.layers[1](x[:, :1], x, x)[0]


def ensemble(model: Any, x: Tensor) -> Tensor:
    return sum(member(x) for member in model.members)


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an ensemble": (
        lambda: By(ensemble, members=[Layers(*by(sdpa)) for _ in range(2)]),
        "does not read what that of members.0.layers.1",
    ),
    "an ensemble that is written out": (
        lambda: By(ensemble, members=[Layers(*by(written)) for _ in range(2)]),
        "does not read what that of members.0.layers.1",
    ),
    "one tower, twice": (
        lambda: By(lambda m, x: m.tower(x) - m.tower(x.flip(1)), tower=Layers(*by(sdpa))),
        "does not read what that of tower.layers.1",
    ),
    "side by side": (lambda: By(ensemble, members=by(sdpa)), "does not read what"),
    "two lists": (
        lambda: By(lambda m, x: m.low(x) + m.high(m.low(x)), low=Layers(*by(sdpa)), high=Layers()),
        "does not read what",
    ),
    "two towers, one upon the other": (
        lambda: By(lambda m, x: m.words(m.picture(x)), picture=Layers(*by(sdpa)),
                   words=Layers(*by(sdpa))),
        "picture.layers.0 and words.layers.0 are not of one list",
    ),
    "windows": (
        lambda: Layers(*(By(windows, layer=Mixing(plain)) for _ in range(2))),
        "takes other tokens together",
    ),
    "a class token that reads": (
        lambda: By(
            a_row_of_the_first,
            layers=[nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(2)],
        ),
        "queries of 1 of 12 tokens, and nothing tells of which",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_a_model_that_reads_otherwise_is_refused_with_the_cause(form: str) -> None:
    model, sentence = REFUSED[form]
    refuse(model(), tokens(), sentence)


def test_both_axes_of_a_square_grid_are_no_chain() -> None:
    model = By(along_both_axes, rows=by(plain), columns=by(plain))
    refuse(model, torch.randn(6, 6, WIDTH), "takes other tokens together")


def test_two_calls_without_a_model_are_no_chain() -> None:
    model, x = Layers(*by(sdpa)).eval(), tokens()
    with torch.no_grad(), capture() as captured:
        model(x)
        model(x)
    with pytest.raises(AttentionInvalid, match="does not read what"):
        captured.rollout()


def cross(layer: Any, x: Tensor, memory: Tensor) -> Tensor:
    """Return what *x* reads from *memory* by *layer*, whose matrix is kept."""
    query, _, _ = layer.split(x)
    _, key, value = layer.split(memory.expand(len(x), -1, -1))
    layer.matrices.append((query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1))
    output = functional.scaled_dot_product_attention(query, key, value)
    return layer.out(output.transpose(1, 2).flatten(2))


def decoder(model: Any, x: Tensor) -> Tensor:
    x = x + model.itself(x)
    return x + cross(model.cross, x, model.memory)


def encoder_and_decoder(model: Any, x: Tensor) -> Tensor:
    """Read one sequence twice: nothing but the attention below tells the two apart."""
    memory = x + model.encoder(x)
    x = x + model.itself(x)
    return x + cross(model.cross, x, memory)


def latents(model: Any, x: Tensor) -> Tensor:
    query = model.memory.expand(len(x), -1, -1)
    return query + cross(model.cross, query, x)


def parts() -> dict[str, Any]:
    return {
        **{name: Mixing(sdpa) for name in ("encoder", "itself", "cross", "other")},
        "memory": nn.Parameter(torch.randn(1, TOKENS, WIDTH)),
    }


@pytest.mark.parametrize("run", [decoder, encoder_and_decoder, latents])
def test_a_sequence_that_is_told_by_its_keys_is_the_source(
    run: Callable[[Any, Tensor], Tensor],
) -> None:
    """The source is as long as what reads it, and no name tells it."""
    model: Any = By(run, **parts()).eval()
    with torch.no_grad(), capture(model) as captured:
        model(tokens())
    unit = torch.eye(TOKENS).expand(2, -1, -1)
    below = {
        name: 0.5 * (unit + layer.matrices[0].mean(dim=1)) if layer.matrices else unit
        for name, layer in (("encoder", model.encoder), ("itself", model.itself))
    }
    weights = captured.rollout(range(TOKENS)).weights
    read = 0.5 * model.cross.matrices[0].mean(dim=1) @ below["encoder"]
    assert (weights["target"] - 0.5 * below["itself"]).abs().max() < 2e-6
    assert (weights["source"] - read).abs().max() < 2e-6


def two_sources(model: Any, x: Tensor) -> Tensor:
    return cross(model.other, encoder_and_decoder(model, x), model.memory)


def keys_of_an_earlier_layer(model: Any, x: Tensor) -> Tensor:
    below = x + model.encoder(x)
    x = below + model.itself(below)
    return x + cross(model.cross, x, below)


@pytest.mark.parametrize("run", [two_sources, keys_of_an_earlier_layer])
def test_keys_of_neither_stream_are_refused(run: Callable[[Any, Tensor], Tensor]) -> None:
    refuse(By(run, **parts()), tokens(), "does not read what")


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attend as GPT-2 did in transformers 4.51: the formula hides later tokens by itself."""
    del module, mask
    matrix = scores_of(query, key).softmax(dim=-1)
    return (matrix @ value).transpose(1, 2), matrix


class Formula(Mixing):
    """Attention that calls the formula of this module, by its name."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(x)
        output, matrix = eager_attention_forward(self, query, key, value, None)
        self.matrices.append(matrix)
        return self.out(output.flatten(2))


def test_a_formula_that_hides_tokens_by_itself_is_explained_by_its_matrix() -> None:
    """The last query sees every token, so its row alone does not tell."""
    model = Layers(*(Formula(sdpa) for _ in range(2)))
    check(model, tokens(), stored(model))
