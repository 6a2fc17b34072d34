"""Shares of every token by labelled passage, in one pass: ``captured.passages({...})``.

``R_l = ρ·R_{l-1} + (1-ρ)·mean_h A_l,h·R_{l-1}`` with a column of R for each passage. It is the
rollout of every row with its keys summed by passage, in O(N · passages) memory, for any mask.
A share says where a token looked, and not what would change without it: ``without`` measures that.

The rule is docs/attention.md, A39.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from .checks import check_shares, check_start, explanation
from .errors import AttentionInvalid
from .layer import Layer
from .masks import whole
from .methods import PLAIN, Rollout, mean_of_all_rows
from .replacing import hidden_keys

if TYPE_CHECKING:
    from torch import nn

OTHER: Final = "other"
SPECIAL: Final = "special"
PADDING: Final = "padding"
SOURCE: Final = "source"
TARGET: Final = "target"
"""The streams of an encoder and a decoder: what is read, and what is written."""
Span = range | slice | Sequence[int] | Sequence[bool] | Tensor
"""Token positions, or a boolean for each token."""


class RemovedPassage(NamedTuple):
    """What hiding a passage changes, beside hiding random spans of its length."""

    change: Tensor  # of the score: with the passage hidden, minus with nothing hidden
    of_spans: Tensor  # [span, …], of different spans that are disjoint from the passage

    @property
    def larger(self) -> Tensor:
        """The share of spans and passage that change the score at least as much as the passage.

        Small is telling. It is at least 1 / (1 + spans), since the passage counts.
        """
        as_much = (self.of_spans.abs() >= self.change.abs()).double().sum(dim=0)
        return (1.0 + as_much) / (1.0 + len(self.of_spans))


@dataclass(frozen=True, eq=False)
class Passages:
    """The share [batch, token, passage] of each token's rollout in each passage."""

    names: tuple[str, ...]
    """As given, then ``special``, ``padding``, ``other`` and ``target`` where there are any."""
    shares: Tensor
    """[batch, token, passage]; a row sums to 1."""
    l1_error: Tensor
    """The mass [batch, token] that was missing before normalisation: rounding, and sinks."""
    _labels: Tensor = field(repr=False)
    _content_free: Callable[[], Tensor] = field(repr=False)
    _model: nn.Module | None = field(repr=False)

    def of(self, name: str) -> Tensor:
        """Return the share of passage *name* of each token, [batch, token]."""
        return self.shares[..., self._place(name)]

    @cached_property
    def content_free(self) -> Tensor:
        """The shares [batch, token, passage] that mask and positions alone would give.

        It takes a second pass.
        """
        return self._content_free()

    @property
    def content_share(self) -> Tensor:
        """The total variation [batch, token] from ``content_free``, 0 to 1."""
        return 0.5 * (self.shares - self.content_free).abs().sum(dim=-1)

    def without(
        self, name: str, score: Callable[[], Tensor], *, spans: int = 20, seed: int = 0
    ) -> RemovedPassage:
        """Return what hiding passage *name* changes in *score*, beside as long random *spans*.

        *score* runs the model and returns numbers, such as log probabilities. Hidden keys are
        masked for all other tokens; positions stay. It runs 2 + *spans* times, or less often if
        fewer spans fit. Spans are different, and hold no special token and no padding. Raises
        ``AttentionInvalid`` if fewer than two fit.
        """
        if whole(spans, "spans") < 1:
            raise AttentionInvalid(f"{spans} spans compare nothing; give at least 1.")
        if self.names[-1] == TARGET:
            raise AttentionInvalid(
                "Only a sequence that reads itself is hidden from; call the model again with an "
                "attention_mask that is 0 at the passage, and compare."
            )
        labels = self._labels[0]
        if not bool((self._labels == labels).all()):
            raise AttentionInvalid("The passages differ by sequence; capture one sequence.")
        hidden = labels == self._place(name)
        apart = [self.names.index(each) for each in (SPECIAL, PADDING) if each in self.names]
        free = ~(hidden | torch.isin(labels, torch.tensor(apart, device=labels.device)))
        length = int(hidden.sum())
        starts = free.long().unfold(0, length, 1).sum(dim=-1).eq(length).nonzero()[:, 0]
        if len(starts) < 2:
            raise AttentionInvalid(
                f"No two other spans of {length} tokens are as long as {name!r}, so there is "
                "nothing to compare it with; give a longer text or a shorter passage."
            )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(starts), generator=generator)[:spans]
        with torch.no_grad():
            before = score()
            changes = []
            place = torch.arange(len(labels), device=labels.device)
            others = [(place >= at) & (place < at + length) for at in starts[drawn].tolist()]
            for keys in (hidden, *others):
                with hidden_keys(self._model, keys):
                    changes.append(score() - before)
        return RemovedPassage(changes[0], torch.stack(changes[1:]))

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise AttentionInvalid(
                f"There is no passage {name!r}; choose one of {', '.join(self.names)}."
            )
        return self.names.index(name)


@explanation
def passages(
    layers: Sequence[Layer],
    spans: Mapping[str, Span],
    method: Rollout = PLAIN,
    *,
    special: Span = (),
    attention_mask: Tensor | None = None,
    model: nn.Module | None = None,
) -> Passages:
    """Return every token's rollout summed by the passages *spans*: [batch, token, passage].

    A span holds token positions, or a boolean for each token. The rollout is that of Abnar and
    Zuidema (2020, arXiv:2005.00928). The *layers* have as many queries as keys, or are an encoder's
    and a decoder's, with spans of the source; their heads are fused by the mean. *special* tokens
    and those where *attention_mask* [batch, token] is 0 stand apart; the rest is ``other``, and the
    decoder's own tokens are ``target``. ``without`` needs the *model* if it attends by eager
    formulas. Raises ``AttentionInvalid`` for passages that are empty, overlap or are out of range.
    """
    if method.fusion != "mean" or method.discard_ratio:
        raise AttentionInvalid(
            "Passages are rolled out by the heads' mean without discarding; use rollout."
        )
    batch, heads, _, time = layers[0].shape
    tokens = {layer.target: layer.shape[2] for layer in layers} | {layers[0].source: time}
    for layer in layers:
        shape = (batch, heads, tokens[layer.target], tokens.get(layer.source))
        if layer.shape != shape:
            raise AttentionInvalid(
                "Passages need layers of one batch, with as many heads, and as many queries as "
                "keys; capture the whole generation in one block."
            )
    names, labels = _labelled(spans, special, attention_mask, batch, time)
    labels = labels.to(layers[0].query.device)
    read, written = layers[0].source, layers[-1].target
    if written != read:
        names = (*names, TARGET)
    used = range(check_start(method.start_layer, len(layers)), len(layers))
    shares = check_shares(method.head_weights, (len(layers), heads), like=layers[0].logsumexp)

    def rolled(layers: Sequence[Layer]) -> Tensor:
        kind = layers[0].operand.kind
        held = {read: torch.nn.functional.one_hot(labels, len(names)).to(kind)}
        if written != read:
            held[written] = held[read].new_zeros(batch, tokens[written], len(names))
            held[written][..., -1] = 1.0
        for number in used:
            layer = layers[number]
            own, below = (
                held[name].to(layer.operand.kind) for name in (layer.target, layer.source)
            )
            held[layer.target] = mean_of_all_rows(
                layer, below, shares[number], method.residual_weight, own=own
            )
        return held[written]

    values = rolled(layers)
    total = values.sum(dim=-1)

    def content_free() -> Tensor:
        with torch.no_grad():
            empty = rolled([layer.content_free() for layer in layers])
            return empty / empty.sum(dim=-1, keepdim=True)

    error = (1.0 - total).clamp_min(0.0)
    return Passages(names, values / total[..., None], error, labels, content_free, model)


def _positions(name: str, span: Span, time: int) -> list[int]:
    """Return the token positions of the passage *name*; raise ``AttentionInvalid`` for others."""
    if isinstance(span, slice):
        return [*range(time)[span]]
    with suppress(TypeError):
        given: list[Any] = [*getattr(span, "tolist", lambda: span)()]
        if not given or not all(isinstance(each, bool) for each in given):
            return [operator.index(position) for position in given]
        if len(given) == time:
            return [at for at, is_inside in enumerate(given) if is_inside]
    raise AttentionInvalid(
        f"The passage {name!r} is {str(span)[:40]}; give token positions, as range(4, 20), or a "
        f"boolean for each of the {time} tokens."
    )


def _labelled(
    spans: Mapping[str, Span], special: Span, attention_mask: Tensor | None, batch: int, time: int
) -> tuple[tuple[str, ...], Tensor]:
    """Return the names in use, and the index among them of each token, int64 [batch, time]."""
    if not spans:
        raise AttentionInvalid('No passage is given; name some, as {"question": range(4, 20)}.')
    for name in (OTHER, SPECIAL, PADDING):
        if name in spans:
            raise AttentionInvalid(
                f"{name!r} is the name of the rest; name that passage otherwise."
            )
    names = [*spans, SPECIAL, PADDING, OTHER]
    labels = torch.full((time,), len(names) - 1)
    free = set(range(time))
    for place, (name, span) in enumerate({**spans, SPECIAL: special}.items()):
        positions = _positions(name, span, time)
        if not (free.issuperset(positions) and (positions or name == SPECIAL)):
            raise AttentionInvalid(
                f"The passage {name!r} must hold at least one of the tokens 0 to {time - 1}, and "
                "none that another passage has; correct it."
            )
        free -= {*positions}
        labels[positions] = place
    labels = labels.expand(batch, -1).clone()
    if attention_mask is not None:
        if attention_mask.shape != labels.shape:
            raise AttentionInvalid(
                f"The attention mask is {list(attention_mask.shape)} and the tokens are "
                f"{list(labels.shape)}; give the mask [batch, token] of the model's call."
            )
        labels[attention_mask.to(labels.device) == 0] = len(spans) + 1
    used = [place for place in range(len(names)) if place < len(spans) or (labels == place).any()]
    index = torch.zeros(len(names), dtype=torch.int64)
    index[used] = torch.arange(len(used))
    return tuple(names[place] for place in used), index[labels]
