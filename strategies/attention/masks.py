"""Which keys a query may see: causal, windows to either side, padding, and any stored table.

All restrictions of a ``Mask`` apply together, and none but ``dense`` is an N x N array.

The rule is docs/attention.md, A2.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from .errors import AttentionInvalid

_TABLE_AXES = 4
_LARGEST: Final = 2**62
FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""The types that attention takes; half types are explained in float32."""
WHOLE: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class MaskKind(StrEnum):
    """The kinds of mask that kernels distinguish; no kernel takes ``OTHER``."""

    FULL = "full"
    CAUSAL = "causal"
    WINDOW = "window"
    OTHER = "other"


def whole(number: object, name: str) -> int:
    """Return *number* as an integer; raise ``AttentionInvalid`` unless it is a whole number.

    *name* is its name in the message.
    """
    if not isinstance(number, bool):
        # A tensor of several numbers, or of floats, raises RuntimeError.
        with suppress(TypeError, RuntimeError):
            index = operator.index(number)  # type: ignore[arg-type]  # what has none is the case
            if abs(index) < _LARGEST:
                return index
    raise AttentionInvalid(f"{name} must be whole numbers, not {number!r}.")


def check_tensor(name: str, tensor: object, kinds: Sequence[torch.dtype] = FLOATS) -> None:
    """Raise ``AttentionInvalid`` unless *tensor* has numbers of one of *kinds*."""
    if not isinstance(tensor, Tensor):
        raise AttentionInvalid(f"{name} is a {type(tensor).__name__}; give a torch tensor.")
    if tensor.dtype not in kinds:
        wanted = "whole numbers, such as int64" if kinds == WHOLE else "a float type"
        either = "booleans or " if torch.bool in kinds else ""
        raise AttentionInvalid(f"{name} is {tensor.dtype}; give {either}{wanted}.")


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys [batch, query, key] a query sees; by default itself and all keys before it."""

    causal: bool = True
    before: int | None = None
    """How many older keys a query sees at most, without its own position."""
    after: int | None = None
    """How many newer keys a query sees at most."""
    first: int | Sequence[int] | Tensor | None = None
    """Position of query 0 among the keys, per sequence or for all; None: queries end with them."""
    starts: Sequence[int] | Tensor | None = None
    """The first key [batch] that is no padding."""
    stops: Sequence[int] | Tensor | None = None
    """One past the last key [batch] that is no padding."""
    leading_keys: Tensor | None = None
    """Leading keys that each query sees at most: int64 [query] or [batch, query]."""
    dense: Tensor | None = None
    """Booleans, or what is added to scores; broadcast to [batch, head, query, key]."""

    def __post_init__(self) -> None:
        """Raise ``AttentionInvalid`` for invalid fields."""
        if not isinstance(self.causal, bool):
            raise AttentionInvalid(f"causal is {self.causal!r}; give True or False.")
        for name in ("before", "after"):
            value = getattr(self, name)
            if value is not None and whole(value, name) < 0:
                raise AttentionInvalid(f"{name} is {value}; give 0 keys or more.")
        for name in ("first", "starts", "stops"):
            value = getattr(self, name)
            if value is None:
                continue
            if name == "first" and isinstance(value, int):
                least = whole(value, name)
            else:
                numbers = _whole_numbers(value, name)
                least = min(numbers, default=0)
                object.__setattr__(self, name, numbers)
            if least < 0:
                raise AttentionInvalid(f"{name} is {least}; give positions of 0 or more.")
        if self.leading_keys is not None:
            check_tensor("leading_keys", self.leading_keys, WHOLE)
        if self.dense is not None:
            check_tensor("dense", self.dense, (torch.bool, *FLOATS))

    @classmethod
    def full(cls) -> Mask:
        """Let every query see every key."""
        return cls(causal=False)

    @classmethod
    def window(cls, bars: int) -> Mask:
        """Let a query see itself and the ``bars - 1`` keys before it.

        Raises ``AttentionInvalid`` unless *bars* is a whole number of at least 1.
        """
        bars = whole(bars, "A window's bars")
        if bars < 1:
            raise AttentionInvalid(f"A window must hold at least 1 bar, not {bars}; widen it.")
        return cls(before=bars - 1)

    @staticmethod
    def from_dense(mask: Tensor) -> Mask:
        """Recognise the dense *mask* [.., query, key]: causal, a window, padding, else dense.

        True shows a key; floats are added to scores, and -inf, or the lowest number of their type,
        hides a key. A recognised mask costs only its visible tiles.
        """
        check_tensor("mask", mask, (torch.bool, *FLOATS))
        table = mask
        if mask.is_floating_point():
            least = torch.finfo(mask.dtype).min
            table = mask > least
            if bool((mask.masked_fill(~table, 0.0) != 0).any()):
                return Mask(causal=False, dense=mask)
        while table.ndim < _TABLE_AXES:
            table = table[None]
        kept = Mask(causal=False, dense=table)
        if table.shape[1] > 1 and not bool((table == table[:, :1]).all()):
            return kept
        recognised = _recognised(table[:, 0])
        return kept if recognised is None else recognised

    @property
    def kind(self) -> MaskKind:
        """The kind of mask that kernels see, for as many queries as keys."""
        others = (self.after if not self.causal else None, self.first, self.starts, self.stops)
        if any(x is not None for x in (*others, self.leading_keys, self.dense)):
            return MaskKind.OTHER
        if not self.causal:
            return MaskKind.FULL if self.before is None else MaskKind.OTHER
        return MaskKind.CAUSAL if self.before is None else MaskKind.WINDOW

    @property
    def words(self) -> str:
        """The mask in words."""
        if self.dense is not None or self.leading_keys is not None:
            return "a mask of its own"
        names = ["causal" if self.causal else "full"]
        if self.before is not None:
            names.append(f"a window of {self.window_bars}")
        if self.starts is not None or self.stops is not None:
            names.append("padded")
        return ", ".join(names)

    @property
    def window_bars(self) -> int:
        """Keys that a query of a causal window sees, including its own; 0 for no window."""
        return 0 if self.before is None else self.before + 1

    @property
    def is_interval(self) -> bool:
        """Whether visibility depends only on age, equally in every sequence."""
        several = (self.starts, self.stops, self.leading_keys, self.dense)
        return all(x is None for x in several) and (
            self.first is None or isinstance(self.first, int)
        )

    def bounds(self, queries: int, keys: int) -> tuple[Tensor, Tensor]:
        """Return the first key that each query sees, and one past the last: [batch or 1, query].

        Both are int64 on the CPU; without visible keys the first is not below the end. ``dense``
        may hide more.
        """
        at = torch.arange(queries, device="cpu") + first_of(self, queries, keys)[:, None]
        low, high = torch.zeros_like(at), torch.full_like(at, keys)
        if self.before is not None:
            low = low.maximum(at - self.before)
        if self.causal:
            high = high.minimum(at + 1)
        if self.after is not None:
            high = high.minimum(at + self.after + 1)
        if self.starts is not None:
            low = low.maximum(torch.tensor(self.starts, device="cpu")[:, None])
        if self.stops is not None:
            high = high.minimum(torch.tensor(self.stops, device="cpu")[:, None])
        if self.leading_keys is not None:
            high = high.minimum(self.leading_keys.cpu().reshape(-1, queries))
        low, high = torch.broadcast_tensors(low, high)
        return low, high

    def visible(self, queries: int, keys: int) -> Tensor:
        """Return how many keys each query sees within ``bounds``: int64 [batch or 1, query]."""
        low, high = self.bounds(queries, keys)
        return (high - low).clamp_min(0)


CAUSAL: Final = Mask()
"""The default mask."""


def _whole_numbers(value: object, name: str) -> tuple[int, ...]:
    """Return *value* as a tuple of whole numbers; raise ``AttentionInvalid`` otherwise."""
    if isinstance(value, Tensor):
        check_tensor(name, value, WHOLE)
        value = value.tolist()
    numbers = value
    if not isinstance(numbers, Sequence):
        raise AttentionInvalid(f"{name} is {value!r}; give one whole number a sequence.")
    return tuple(whole(number, f"The numbers of {name}") for number in numbers)


def _recognised(table: Tensor) -> Mask | None:
    """Return *table* [batch, query, key] as a mask by age and padding; None for anything else."""
    queries, keys = table.shape[1:]
    shown = table.any(dim=-1)  # [batch, query]
    if not bool(shown.any()):
        return None
    lowest = table.int().argmax(dim=-1)  # of equal entries the first
    highest = keys - 1 - table.flip(-1).int().argmax(dim=-1)
    at = torch.arange(queries, device=table.device) + keys - queries
    starts = lowest.masked_fill(~shown, keys).amin(dim=-1)
    stops = highest.masked_fill(~shown, -1).amax(dim=-1) + 1
    # Rows bounded by padding alone do not show how far the mask reaches.
    is_newer = shown & (highest + 1 < stops[:, None])
    is_older = shown & (lowest > starts[:, None])
    after = int((highest - at).masked_fill(~is_newer, -1).amax())
    before = int((at - lowest).masked_fill(~is_older, -1).amax())
    mask = Mask(
        causal=after == 0,
        before=None if before < 0 else before,
        after=None if after <= 0 else after,
        starts=None if bool((starts == 0).all()) else starts,
        stops=None if bool((stops == keys).all()) else stops,
    )
    is_same = bool((shown_table(mask, queries, keys, table.device) == table).all())
    return mask if is_same else None


def shown_table(mask: Mask, queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys lie within the ``bounds`` of *mask*: boolean [batch or 1, query, key]."""
    low, high = (ends.to(device)[..., None] for ends in mask.bounds(queries, keys))
    key = torch.arange(keys, device=device)
    return (key >= low) & (key < high)


def first_of(mask: Mask, queries: int, keys: int) -> Tensor:
    """Return the position of query 0 among the keys, on the CPU: [batch], or [1] for all alike."""
    first = keys - queries if mask.first is None else mask.first
    return torch.as_tensor(first, device="cpu", dtype=torch.int64).reshape(-1)


def closed_keys(query_closes: Tensor, key_closes: Tensor) -> Tensor:
    """Return how many keys have closed by each query's close: int64, for ``Mask.leading_keys``.

    Both are int64 times of one clock, such as milliseconds: [.., query] and ascending [.., key]. A
    key that closes with the query counts. Raises ``AttentionInvalid``.
    """
    check_tensor("query_closes", query_closes, WHOLE)
    check_tensor("key_closes", key_closes, WHOLE)
    # An export traces shapes and cannot check values.
    if not torch.compiler.is_compiling() and bool((key_closes.diff(dim=-1) < 0).any()):
        raise AttentionInvalid("The keys' times do not ascend; sort the stream by its closes.")
    return torch.searchsorted(key_closes.contiguous(), query_closes.contiguous(), right=True)
