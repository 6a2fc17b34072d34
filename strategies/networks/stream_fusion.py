"""Head fusion and the residual stream in a streaming rollout.

A stream computes the rollout of every bar as it goes, so it supports only what one row of a layer
determines: the heads' mean, weighted or not, their largest or smallest entry, the norms of the
values, the share of the residual stream and the lowest layer. Discarding ranks a whole matrix, a
gradient needs the forecast first, and a flow needs all layers at once: a stream has none of them.

The rules are docs/attention.md, A11 and A21 to A23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from tracepaper.strategies.attention.checks import check_shares, check_start
from tracepaper.strategies.attention.layer import value_norms
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import ConfigInvalid

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.strategies.networks.flash import Block

STREAMED: Final = ("rollout", "norm")
"""The methods that a stream can store."""


class StreamFusion:
    """One method, ready for the tiles of a stream.

    A tile's result is the fused product with the rollout below it, [stream, bar, width]. If fused
    rows do not sum to 1, one more column holds the fused mass of each row.
    """

    def __init__(self, method: Rollout, *, layers: int, heads: int, device: torch.device) -> None:
        """Raise ``ConfigInvalid`` for a method that no stream supports, and like ``rollout``."""
        if method.name not in STREAMED:
            raise ConfigInvalid(
                f"A stream cannot store the attention of every bar by {method.name}; choose "
                f"{' or '.join(STREAMED)}, and ask `explain --method {method.name}` for one "
                "decision."
            )
        if method.discard_ratio:
            raise ConfigInvalid(
                "Discarding ranks the entries of a whole matrix, which a stream never has; set "
                "discard to 0, and ask `explain --discard` for one decision."
            )
        self.residual = method.residual_weight
        self.start_layer = check_start(method.start_layer, layers)
        self.by_norm = method.fusion == "norm"
        self._kind = method.fusion
        self._heads = heads
        given = method.head_weights
        like = torch.empty(0, device=device)
        shares = check_shares(given, (layers, heads), like=like)
        self._shares = None if given is None else shares  # [layer, head]

    @property
    def has_mass(self) -> bool:
        """Whether a tile's product ends in a column of fused masses."""
        return self._kind != "mean"

    def lengths(self, block: Block, value: Tensor) -> Tensor:
        """Return the norms [stream, head, time] that weigh *value* [stream, head, time, dim]."""
        return value_norms(value, block.project_out.weight)

    def of_tile(self, depth: int, shares: Tensor, below: Tensor, lengths: Tensor | None) -> Tensor:
        """Return the fused product of one tile of layer *depth* with the rollout *below* it.

        *shares* are [stream, head, bar, key], *below* [stream, key, width], *lengths*
        [stream, head, key] of a method by norms.
        """
        if depth < self.start_layer:
            return below.new_zeros(len(below), shares.shape[2], 0)
        if not self.has_mass:
            if self._shares is None:
                # A mean over heads takes twice as long as their sum; the product is smaller.
                return (shares.sum(1) @ below).mul_(1.0 / self._heads)
            return torch.einsum("h,shbk->sbk", self._shares[depth], shares) @ below
        if self._kind == "max":
            fused = shares.amax(1)
        elif self._kind == "min":
            fused = shares.amin(1)
        else:
            assert lengths is not None, "kept wherever the method is by norms"
            fused = torch.einsum("shbk,shk->sbk", shares, lengths)
        return torch.cat((fused @ below, fused.sum(-1, keepdim=True)), dim=-1)

    def join(self, depth: int, product: Tensor, below: Tensor) -> Tensor:
        """Return ``R_l`` of the tiles' *product* and the rows *below*, [stream, bar, width]."""
        if depth < self.start_layer:
            return below
        if not self.has_mass:
            return torch.lerp(product, below, self.residual)
        moved, mass = product[..., :-1], product[..., -1:]
        if self.by_norm:
            # A row whose values all have norm 0 keeps itself.
            moved = torch.where(mass > 0, moved / mass, below)
            return torch.lerp(moved, below, self.residual)
        total = self.residual + (1.0 - self.residual) * mass
        return (self.residual * below + (1.0 - self.residual) * moved) / total
