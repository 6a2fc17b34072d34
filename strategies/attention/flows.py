"""From what each tensor of a model was computed: its inputs, and the attentions before it.

A torch function mode sees every operation while the model runs. So a capture can prove that one
attention reads what the one below it wrote, and knows a softmax over scores of two tokens from one
over classes or experts. A tensor is known by itself: what is written into it in place counts.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .checks import AXES, working_type

ATTEND: Final = functional.scaled_dot_product_attention
_KINDS: Final[dict[Any, str]] = {
    func: kind
    for kind, functions in {
        "attends": (
            ATTEND,
            torch.ops.aten.scaled_dot_product_attention,
            torch.ops.aten.scaled_dot_product_attention.default,
        ),
        "normalises": (functional.softmax, torch.softmax, Tensor.softmax),
        "keeps axes": (
            functional.dropout,
            torch.dropout,
            Tensor.to,
            Tensor.type,
            Tensor.type_as,
            Tensor.float,
            Tensor.half,
            Tensor.bfloat16,
            Tensor.double,
            Tensor.contiguous,
            Tensor.clone,
            Tensor.view,
            Tensor.reshape,
            Tensor.masked_fill,
            torch.masked_fill,
        ),
        "multiplies": (
            torch.matmul,
            torch.bmm,
            Tensor.matmul,
            Tensor.__matmul__,
            Tensor.bmm,
            torch.einsum,
            torch.baddbmm,
            Tensor.baddbmm,
        ),
        "projects": (functional.linear,),
        "weighs": (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
        "swaps": (
            torch.transpose,
            Tensor.transpose,
            Tensor.swapaxes,
            torch.permute,
            Tensor.permute,
        ),
    }.items()
    for func in functions
}
_ORDERS: Final = (torch.permute, Tensor.permute)
_ADDED: Final = (torch.baddbmm, Tensor.baddbmm)
_SEQUENCES: Final = (tuple, list)
_GETTER: Final = type(vars(torch._C.TensorBase)["shape"].__get__)  # noqa: SLF001
NO_PRODUCT: Final = "its softmax is no left factor of a product with values"
_OWN: Final = "its shares are of no softmax of torch"
INPUTS: Final = 16
"""The bits of the tensors that a model was given; those of its attentions follow."""
ROW_SUM: Final = {torch.float64: 1e-5, torch.float32: 1e-5}
"""How far from 1 a row's sum may be, by type; half types: 1e-2. BLOOM normalises in float32."""


class Scores(NamedTuple):
    """The sources of two tokens whose product a tensor is, or follows from."""

    query: int
    key: int
    is_softmax: bool = False  # a softmax was taken since


class Lineage(NamedTuple):
    """From what a tensor was computed."""

    sources: int  # one bit for each input and each attention
    scores: Scores | None = None
    softmax: torch.Size | None = None  # the shape of the softmax that made it
    turns: int = 0  # which pairs of axes are swapped, a bit each


NOTHING: Final = Lineage(0)


class HandwrittenProduct(NamedTuple):
    """The probabilities of a module, as it multiplies them, and the shape of their softmax."""

    matrix: Tensor
    shape: torch.Size
    output: Tensor
    scores: Scores | None
    values: int  # the sources of what it multiplies


class Observer(Protocol):
    """What is told of the attention that a model computes."""

    def saw_attention(
        self, attend: Callable[..., Tensor], *args: object, **options: object
    ) -> Tensor:
        """Attend as *attend* does, a function that was called by no name that was replaced."""
        ...

    def saw_softmax(self) -> None:
        """See a softmax over a last axis."""

    def saw_product(self, product: HandwrittenProduct) -> None:
        """See the probabilities of a softmax after they met values."""

    def saw_other(self, cause: str) -> None:
        """See attention that is computed in another way."""


class Flows(TorchFunctionMode):
    """Follow what each tensor was computed from, and tell *observer* of attention."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer
        self._origins: dict[int, tuple[weakref.ref[Tensor], Lineage]] = {}
        self._heads: Sequence[Tensor] | None = None  # of torch's own attention that runs
        self._is_attending = False
        self.captured = 0
        """One bit for each attention that was captured in this call."""

    def begin(self, given: object) -> None:
        """Forget the call before; *given* is what the model is called with."""
        self._origins.clear()
        self.captured = 0
        for place, tensor in enumerate(tensors(given)):
            self._put(tensor, Lineage(1 << min(place, INPUTS - 1)))

    def of(self, tensor: Tensor | None) -> Lineage:
        """Return from what *tensor* was computed."""
        entry = self._origins.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else NOTHING

    def of_call(self, query: Tensor, key: Tensor) -> tuple[Lineage, Lineage]:
        """Return from what *query* and *key* of an attention were computed."""
        if self._heads is not None:  # what is inside of a function of torch is not seen
            query, key = self._heads
        return self.of(query), self.of(key)

    def add(self, tensor: Tensor, sources: int) -> None:
        """Let *tensor* be computed from *sources* besides."""
        before = self.of(tensor)
        if before.sources | sources:
            self._put(tensor, before._replace(sources=before.sources | sources, scores=None))

    def hand_on(self, given: object, results: object) -> None:
        """Let what no mode sees, as a scripted function, be computed from all that was *given*."""
        for result in (results,) if isinstance(results, Tensor) else tensors(results):
            if not self.of(result).sources:
                for tensor in tensors(given):
                    self.add(result, self.of(tensor).sources)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Tell nobody of torch's attention inside the block: it is captured there."""
        was_attending, self._is_attending = self._is_attending, True
        try:
            yield
        finally:
            self._is_attending = was_attending

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run *func*, and keep from what its result was computed."""
        if self._is_attending:
            return func(*args, **(kwargs or {}))
        if type(func) is _GETTER and not isinstance(result := func(*args), Tensor):
            return result  # a shape or a type: most of what a model asks for
        options = kwargs or {}
        before = self.captured
        if _KINDS.get(func) == "attends":
            result = self._observer.saw_attention(func, *args, **options)
        elif func is functional.multi_head_attention_forward:  # torch's, or what replaces it
            self._heads = (*args, *options.values())[:2]
            try:
                result = func(*args, **options)
            finally:
                self._heads = None
        else:
            result = func(*args, **options)
        self._note(func, args, options, result, before)
        return result

    def _note(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        options: Mapping[str, Any],
        result: object,
        before: int,
    ) -> None:
        """Keep from what the *result* of *func* was computed, and what was captured meanwhile."""
        if isinstance(result, Tensor):
            origin, kind = self._joined(args, options), _KINDS.get(func)
            if before == self.captured and (kind is not None or (args and args[0] is result)):
                origin = self._changed(origin, kind, func, args, options, result)
            self._keep(result, origin, before)
        elif isinstance(result, (tuple, list)) and type(result) is not torch.Size:
            if getattr(func, "__name__", "") == "flex_attention":
                self._observer.saw_other("flex_attention")
            origin = self._joined(args, options)
            for part in tensors(result):
                self._keep(part, origin, before)
        elif func is Tensor.__setitem__:
            self._write(args[0], self._joined(args[2:], options).sources)

    def _keep(self, result: Tensor, origin: Lineage, before: int) -> None:
        """Keep the *origin* of *result*, and the attentions that were captured since *before*."""
        new = self.captured & ~before
        if new:
            origin = Lineage(origin.sources | new << INPUTS, turns=origin.turns)
        if origin.sources:
            self._origins[id(result)] = weakref.ref(result), origin

    def _changed(
        self,
        origin: Lineage,
        kind: str | None,
        func: Callable[..., Any],
        args: Sequence[Any],
        options: Mapping[str, Any],
        result: Tensor,
    ) -> Lineage:
        """Return the *origin* of the arguments of *func*, which is of a *kind*, as its result's."""
        softmax: torch.Size | None = None
        first = args[0] if args else None
        if result is first:
            softmax = self.of(result).softmax
            self._write(result, origin.sources)
        elif kind == "multiplies":
            return origin._replace(scores=self._multiply(func, args, options, result))
        elif kind == "projects":
            return origin._replace(scores=None)
        elif kind == "swaps":
            return origin._replace(turns=origin.turns ^ _swap(func, args, options, result.ndim))
        elif kind == "weighs" and self._weighs(args, result):
            self._observer.saw_other(NO_PRODUCT)
        elif kind == "normalises":
            axis = options.get("dim", args[1] if len(args) > 1 else None)
            if result.ndim >= AXES - 1 and axis in (-1, result.ndim - 1):
                self._observer.saw_softmax()
                scores = origin.scores and origin.scores._replace(is_softmax=True)
                return origin._replace(softmax=result.shape, scores=scores)
        elif kind == "keeps axes" and isinstance(first, Tensor):
            softmax = self.of(first).softmax if result.numel() == first.numel() else None
        return origin if softmax is None else origin._replace(softmax=softmax)

    def _multiply(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        options: Mapping[str, Any],
        result: Tensor,
    ) -> Scores | None:
        """Return the scores that *result* is, or follows from; see what weighs values."""
        factors = tensors((args, options))
        if func in _ADDED:
            factors = factors[1:]
        if len(factors) != len(("left", "right")):
            return None
        left, right = (self.of(factor) for factor in factors)
        if left.softmax is not None and (func is not torch.einsum or _sums_keys(args)):
            self._observer.saw_product(
                HandwrittenProduct(factors[0], left.softmax, result, left.scores, right.sources)
            )
            return None
        if not (left.sources and right.sources):
            return left.scores or right.scores  # by weights, as heads are mixed
        if left.scores is None and right.scores is None:
            return Scores(left.sources, right.sources)
        place = 0 if left.scores is not None else 1
        scores = left.scores or right.scores
        if scores is not None and scores.is_softmax:
            self._observer.saw_other(NO_PRODUCT)
        elif _are_shares(factors[place]):
            self._observer.saw_other(_OWN)
        return None

    def _weighs(self, args: Sequence[Any], result: Tensor) -> bool:
        """Return whether *args* are the shares of a softmax and values, to be summed later."""
        origins = [self.of(tensor) for tensor in tensors(args)]
        return any(
            each.scores is not None and each.scores.is_softmax and result.ndim > AXES
            for each in origins
        ) and any(each.sources and each.scores is None for each in origins)

    def _joined(self, args: Sequence[Any], options: Mapping[str, Any]) -> Lineage:
        """Return the origin of what is computed from *args* and *options*."""
        # It runs at each operation, so what comes from one tensor is not made anew.
        joined, origins = NOTHING, self._origins
        for given in (*args, *options.values()) if options else args:
            if isinstance(given, Tensor):
                entry = origins.get(id(given))
                if entry is None or entry[0]() is not given:
                    continue
                origin = entry[1]
            elif type(given) in _SEQUENCES:
                origin = self._joined(given, {})
            else:
                continue
            if origin is joined or not origin.sources:
                continue
            if joined.sources:
                # A residual is not turned; what is added to it was turned back.
                turns = min(joined.turns, origin.turns)
                sources = joined.sources | origin.sources
                joined = Lineage(sources, joined.scores or origin.scores, turns=turns)
            else:
                joined = origin if origin.softmax is None else origin._replace(softmax=None)
        return joined

    def _write(self, tensor: Tensor, sources: int) -> None:
        """Keep that something of *sources* was written into *tensor*, and what it is a view of."""
        for each in (tensor, tensor._base):  # noqa: SLF001 - torch has no other name
            if each is not None and sources:
                before = self.of(each)
                self._put(each, before._replace(sources=before.sources | sources))

    def _put(self, tensor: Tensor, origin: Lineage) -> None:
        self._origins[id(tensor)] = weakref.ref(tensor), origin


def tensors(given: object) -> list[Tensor]:
    """Return the tensors in *given*, through tuples, lists and dictionaries."""
    if isinstance(given, Tensor):
        return [given]
    if isinstance(given, (tuple, list)):
        return [tensor for part in given for tensor in tensors(part)]
    if isinstance(given, dict):
        return [tensor for part in given.values() for tensor in tensors(part)]
    return []


def _sums_keys(args: Sequence[Any]) -> bool:
    """Return whether an einsum sums two factors over the last axis of the first alone."""
    if len(args) != len(("equation", "probabilities", "values")) or "->" not in args[0]:
        return False
    inputs, output = args[0].replace(" ", "").split("->")
    first = inputs.partition(",")[0]
    return "." not in first and first[-1] not in output and set(first[:-1]) <= set(output)


def _swap(
    func: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any], ndim: int
) -> int:
    """Return a bit for the two axes that *func* swaps, or none if it swaps no single pair."""
    axes = [x for x in (*args[1:], *options.values()) if not isinstance(x, Tensor)]
    axes = [axis % ndim for x in axes for axis in (x if isinstance(x, (tuple, list)) else (x,))]
    if func in _ORDERS:
        axes = [axis for place, axis in enumerate(axes) if axis != place]
    return 1 << ndim * min(axes) + max(axes) if len(set(axes)) == len(("one", "other")) else 0


def _are_shares(matrix: Tensor) -> bool:
    """Return whether the rows of *matrix* are not negative and sum to 1."""
    if matrix.ndim < AXES - 1 or not matrix.is_floating_point():
        return False
    rows = matrix.detach().to(working_type(matrix))
    limit = ROW_SUM.get(matrix.dtype, 1e-2)
    return bool((rows >= 0).all() & ((rows.sum(dim=-1) - 1.0).abs() <= limit).all())
