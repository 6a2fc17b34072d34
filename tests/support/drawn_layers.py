"""Random layers of attention by seed, held to their matrices in float64.

A layer is one seed: its type, sizes, shared heads, scale, cap and sinks, the layout of its tensors,
and a mask of age, padding and stored numbers together, some of which hide a key (-inf, the lowest
number of the type, -1e9, -1e4). Logsumexp, rows, entropy, what each fusion carries and a rollout
follow from its matrix, and what ``capture`` keeps of torch's own call too, within what rounding may
do.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Final

import dense_attention as reference
import torch
from attention_cases import LAYOUTS
from rounding import entry_roundings, gamma
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from tracepaper.strategies.attention import Layer, Mask, capture, rollout
from tracepaper.strategies.attention.masks import FLOATS
from tracepaper.strategies.attention.reads import Fuse

FUSIONS: Final = ("mean", "max", "min", "norm", "gradient")
WIDTH, FAR = 5, 1e3


class DrawnLayer:
    """A layer of one seed, its matrix and its checks."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        draw = self.draw
        self.batch = draw.choice([1, 2, 3])
        self.heads, self.key_heads = draw.choice([(1, 1), (2, 2), (3, 3), (4, 2), (6, 2), (4, 1)])
        self.queries, self.keys = draw.choice(
            [(draw.randint(1, 70),) * 2, (1, 40), (9, 30), (30, 9)]
        )
        self.dim = draw.choice([1, 2, 7, 8, 16, 33])
        self.dtype = draw.choice(FLOATS)
        self.layout = draw.choice([*LAYOUTS])
        size = draw.choice([0.3, 1.0, 3.0])
        query = self.tensor(self.heads, self.queries, self.dim, by=size)
        key, value = (self.tensor(self.key_heads, self.keys, self.dim, by=size) for _ in "kv")
        sinks = torch.linspace(-1.0, 1.0, self.heads)
        sinks[0] = -torch.inf
        self.layer = replace(
            Layer.of(
                query, key, value, self.mask(), scale=draw.choice([None, None, 0.1, 0.9]),
                softcap=draw.choice([None, None, 0.7, 5.0]),
                sinks=draw.choice([None, None, sinks.to(self.dtype)]),
            ),
            output_weight=self.numbers(WIDTH, self.heads * self.dim).to(self.dtype),
            gradient=self.tensor(self.heads, self.queries, self.dim),
        )  # fmt: skip
        self.matrix, self.sums = matrix_of(self.layer)
        longest = [float(x.double().norm(dim=-1).max()) for x in (query, key)]
        score, self.added = self.layer.factor * longest[0] * longest[1], added_to(self.layer)
        self.of_scores = entry_roundings(dim=self.dim, keys=self.keys, score=score)
        self.rounding = self.bound(self.added)
        self.entropy_rounding = (1.0 + score + self.added) * self.rounding

    def bound(self, added: float, *, times: int = 1, more: int = 0) -> float:
        """Return the relative error of entries, *times* of them, with *more* roundings.

        A mask that adds numbers as large as *added* may have the layer computed in float64.
        """
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        working = torch.float64 if added > FAR else kind
        roundings = times * (self.of_scores + 8 * added) + more
        return gamma(roundings, working) + float(torch.finfo(kind).eps)

    def numbers(self, *shape: int) -> Tensor:
        """Return normal numbers of *shape* in float64."""
        return torch.randn(shape, generator=self.noise, dtype=torch.float64)

    def tensor(self, heads: int, time: int, dim: int, by: float = 1.0) -> Tensor:
        """Return a tensor [batch, head, time, dim] in the drawn type and layout."""
        numbers = by * self.numbers(self.batch, heads, time, dim)
        return LAYOUTS[self.layout](numbers.to(self.dtype))

    def stored(self) -> Tensor:
        """Return a stored mask that shows each query a key: booleans, a bias, or both in one."""
        draw = self.draw
        heads = draw.choice([1, self.heads])
        shape = draw.choice([(self.batch, heads), (1, heads)])
        shown = torch.rand(*shape, self.queries, self.keys, generator=self.noise) < 0.6
        shown[..., draw.randrange(self.keys)] = True
        form = draw.choice(["flags", "bias", "hiding", "both"])
        if form == "flags":
            return shown
        bias = self.numbers(*shown.shape) * (form != "hiding")
        if form == "bias":
            return bias.to(self.dtype)
        lowest = torch.finfo(self.dtype).min
        hiding = draw.choice([-torch.inf, lowest, max(-1e9, lowest), -1e4])
        return bias.masked_fill(~shown, hiding).to(self.dtype)

    def mask(self) -> Mask:
        """Return a mask whose restrictions apply together, or one that a stored table gives."""
        draw = self.draw
        if draw.random() < 0.3:
            return Mask.from_dense(self.stored())
        some = [draw.random() < 0.4 for _ in range(5)]
        lengths = torch.randint(0, self.keys + 1, (self.batch, self.queries), generator=self.noise)
        return Mask(
            causal=draw.random() < 0.5,
            before=draw.choice([None, 0, 3, 20]),
            after=draw.choice([None, 0, 5]),
            first=draw.choice([None, 0, 2]) if some[0] else None,
            starts=[draw.randrange(self.keys) for _ in range(self.batch)] if some[1] else None,
            stops=[draw.randint(0, self.keys) for _ in range(self.batch)] if some[2] else None,
            leading_keys=lengths if some[3] else None,
            dense=self.stored() if some[4] else None,
        )

    def close(self, given: Tensor, wanted: Tensor, rounding: float, name: str) -> None:
        """Require *given* to be *wanted* within *rounding* of the numbers, and of 1."""
        torch.testing.assert_close(
            given.double(), wanted, rtol=rounding, atol=rounding,
            msg=lambda text: f"{name}, {self.dtype}, {self.layout}: {text}",
        )  # fmt: skip

    def check(self) -> str:
        """Hold each reduction to the matrix; return what the layer was."""
        layer, matrix, sums = self.layer, self.matrix, self.sums
        # Whatever the type of the work, a logsumexp is summed in the layer's own.
        error = (self.of_scores + 8 * self.added) * torch.finfo(layer.logsumexp.dtype).eps
        self.close(layer.logsumexp, sums, error, "logsumexp")
        lost = torch.zeros_like(sums)
        if layer.sinks is not None:
            lost = (layer.sinks.double()[:, None] - sums).exp().nan_to_num(0.0, posinf=0.0)
        entropy = torch.special.entr(matrix).sum(-1) + torch.special.entr(lost)
        for backend in ("auto", "tiles"):
            self.close(layer.entropy(backend=backend), entropy, self.entropy_rounding, "entropy")
        self.close(layer.rows(range(self.queries)), matrix, self.rounding, "rows")
        is_flag = layer.mask.dense is None or layer.mask.dense.dtype == torch.bool
        if is_flag and layer.largest < FAR / 4:  # beyond it a weight may be 0 in float64
            assert torch.equal(layer.visible(), (matrix > 0).sum(dim=-1))
        for fusion in FUSIONS:
            self.check_carried(fusion)
        if self.queries == self.keys and layer.mask.first is None:
            self.check_rollout()
        if layer.softcap is None and layer.sinks is None:
            self.check_capture()
        dense = layer.mask.dense
        stored = "no stored mask" if dense is None else f"stored as {str(dense.dtype)[6:]}"
        return f"{str(self.dtype)[6:]}, {stored}"

    def check_carried(self, fusion: str) -> None:
        """Hold what *fusion* carries to the fused matrix."""
        layer, matrix = self.layer, self.matrix
        count = self.draw.choice([1, 9])
        weights = torch.rand(self.batch, count, self.queries, generator=self.noise).double()
        blind = torch.isneginf(self.sums).double().mean(dim=1)[:, None]
        slack = 4.0 * self.bound(self.added, more=2 * self.keys + 4 * WIDTH + self.dim)
        if fusion == "mean":
            carried = layer.advance(weights, Fuse())
            self.close(carried.moved, weights @ matrix.mean(dim=1), slack * self.queries, fusion)
            kept = torch.zeros_like(weights) if carried.kept is None else carried.kept
            self.close(kept, blind * weights, slack, f"what {fusion} keeps")
            return
        rows, size = fused(layer, matrix, fusion), 1.0
        totals = rows.sum(dim=-1)[:, None]
        if fusion in {"max", "min"}:
            scaled = weights / (0.5 + 0.5 * totals)
        else:
            # A row whose total is a difference of large numbers has no digits to compare.
            size = float(totals.max())
            weights = weights * ((totals == 0) | (totals > 1e-2 * size))
            scaled = weights / totals.masked_fill(totals == 0, torch.inf)
            slack *= 1e2
        carried = layer.advance(weights, Fuse(fusion=fusion))  # type: ignore[arg-type]
        self.close(carried.moved, scaled @ rows, slack * self.queries, fusion)
        if fusion in {"max", "min"}:
            self.close(carried.above, scaled, slack, f"what {fusion} keeps")
        elif carried.kept is not None:
            self.close(carried.kept, weights * (totals == 0), slack, f"what {fusion} keeps")

    def check_rollout(self) -> None:
        """Hold the rollout of the layer upon itself to the product of its matrices."""
        unit = torch.eye(self.keys, dtype=torch.float64)
        blind = torch.isneginf(self.sums).double().mean(dim=1)
        step = 0.5 * unit + 0.5 * (self.matrix.mean(dim=1) + torch.diag_embed(blind))
        wanted = step @ step
        wanted = wanted / wanted.sum(dim=-1, keepdim=True)
        result = rollout([self.layer, replace(self.layer)], range(self.keys)).weights["tokens"]
        slack = 4 * self.bound(self.added, times=2, more=4 * self.keys + 8 * self.heads)
        self.close(result, wanted, slack, "rollout")

    def check_capture(self) -> None:
        """Hold what is captured of torch's own call with a stored mask to its matrix."""
        layer, table = self.layer, self.stored()
        shares = self.heads != self.key_heads
        assert layer.value is not None
        with capture() as captured:
            attend(layer.query, layer.key, layer.value, table, scale=layer.scale, enable_gqa=shares)
        (read,) = captured.reads
        called = replace(layer, mask=Mask(causal=False, dense=table))
        matrix, _ = matrix_of(called)
        slack = self.bound(added_to(called))
        if self.dtype in {torch.float16, torch.bfloat16}:
            slack *= 4  # the kernel's logsumexp rounds as its own scores do
        self.close(read.rows(range(self.queries)), matrix, slack, "captured rows")


def added_to(layer: Layer) -> float:
    """Return the largest |number| that the mask adds to a key with a weight."""
    dense = layer.mask.dense
    if dense is None or dense.dtype == torch.bool:
        return 0.0
    matrix, _ = matrix_of(layer)
    numbers = dense.double().expand_as(matrix)
    return float(numbers.masked_fill(matrix == 0, 0.0).abs().max())


def matrix_of(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return the matrix and logsumexp in float64; the lowest number of a type hides its key."""
    mask = layer.mask
    if mask.dense is not None and mask.dense.dtype != torch.bool:
        hides = mask.dense <= torch.finfo(mask.dense.dtype).min
        mask = replace(mask, dense=mask.dense.masked_fill(hides, -torch.inf))
    return reference.layer_matrix(replace(layer, mask=mask))


def fused(layer: Layer, matrix: Tensor, fusion: str) -> Tensor:
    """Return the heads' fused matrix [batch, query, key], no row of which is normalised."""
    if fusion in {"max", "min"}:
        return matrix.amax(dim=1) if fusion == "max" else matrix.amin(dim=1)
    assert layer.value is not None
    assert layer.gradient is not None
    assert layer.output_weight is not None
    group = layer.query.shape[1] // layer.key.shape[1]
    value = layer.value.double().repeat_interleave(group, dim=1)
    if fusion == "gradient":
        return (matrix * (layer.gradient.double() @ value.mT)).clamp_min(0).mean(dim=1)
    by_head = layer.output_weight.double().unflatten(1, (-1, value.shape[-1]))
    lengths = torch.einsum("bhkd,mhd->bhkm", value, by_head).norm(dim=-1)
    return (matrix * lengths[:, :, None]).mean(dim=1)
