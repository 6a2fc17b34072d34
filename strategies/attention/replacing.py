"""Replace the attention that Python modules call, while a model runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from inspect import signature
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import AttentionInvalid

EAGER: Final = "eager_attention_forward"
"""The function that modules of transformers call if no kernel is chosen."""
HEADS: Final = signature(functional.multi_head_attention_forward)
_ATTEND: Final = functional.scaled_dot_product_attention
_FLEX: Final = "torch.nn.attention.flex_attention"


def _places(function: object) -> list[tuple[ModuleType, str]]:
    """Return the Python modules that have *function*, each with its name there."""
    # The compiler finds torch's own functions by their modules.
    homes = [functional] + [
        home
        for name, home in list(sys.modules.items())
        if type(home) is ModuleType and (name == _FLEX or not name.startswith("torch."))
    ]
    return [(home, name) for home in homes for name, has in vars(home).items() if has is function]


@lru_cache(maxsize=2)
def _cached_places(function: object, _modules: int) -> list[tuple[ModuleType, str]]:
    """Return ``_places`` of *function*, cached while the number of modules stays."""
    return _places(function)


def uncompiled() -> AbstractContextManager[None]:
    """Let compiled code run eagerly inside the block."""
    # If it is not loaded nothing is compiled, and loading takes a second and 150 MB.
    has_compiler = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if has_compiler else nullcontext()


@contextmanager
def replaced(attend: Callable[..., Tensor], by: Callable[..., Tensor]) -> Iterator[None]:
    """Let Python modules call *by* in place of *attend*, whatever its name is there.

    Fast paths around it are off, and compiled code runs eagerly.
    """
    is_torch = attend is _ATTEND
    places = _cached_places(_ATTEND, len(sys.modules)) if is_torch else _places(attend)
    named = [(home, name) for home, name in places if getattr(home, name, None) is attend]
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for home, name in named:
            setattr(home, name, by)
        with uncompiled():
            yield
    finally:
        for home, name in named:
            setattr(home, name, attend)
        torch.backends.mha.set_fastpath_enabled(was_fast)


def put_flex(stack: ExitStack, by: Callable[..., Any]) -> None:
    """Let Python modules call *by* in place of flex_attention until *stack* closes."""
    flex = getattr(sys.modules.get(_FLEX), "flex_attention", None)
    if flex is not None:  # else nobody has it; loading it takes a second
        for home, name in _cached_places(flex, len(sys.modules)):
            put(stack, home, name, by)


def homes_of_formulas(model: nn.Module) -> list[ModuleType]:
    """Return the Python modules whose attention in plain operations *model* may call."""
    homes = sorted({type(module).__module__ for module in model.modules()})
    return [sys.modules[home] for home in homes if hasattr(sys.modules.get(home), EAGER)]


@contextmanager
def hidden_keys(model: nn.Module | None, keys: Tensor) -> Iterator[None]:
    """Let no token of *model* see the *keys*, boolean [time], but a hidden token itself.

    Positions stay. A hidden token sees itself, so that its own row has a weight; nobody reads it.
    """

    def hiding(mask: Tensor | None, query: Tensor, key: Tensor, *, is_causal: bool) -> Tensor:
        queries, count = query.shape[-2], key.shape[-2]
        if queries != count:
            raise AttentionInvalid(
                "Keys are hidden from a call over all tokens; let the score call the model once, "
                "and not generate."
            )
        later = max(0, count - len(keys))  # which nothing hides
        own = torch.eye(count, dtype=torch.bool, device=key.device)
        hides = functional.pad(keys[:count], (0, later)).to(key.device) & ~own
        if is_causal:
            hides = hides | ~torch.ones_like(own).tril()
        if mask is None:
            return query.new_zeros(hides.shape).masked_fill_(hides, -torch.inf)
        mask = mask[..., :count]
        if mask.dtype == torch.bool:
            return mask & ~hides
        return mask.masked_fill(hides, -torch.inf)

    attend, heads = functional.scaled_dot_product_attention, functional.multi_head_attention_forward

    def attended(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - as torch calls it
        **options: Any,
    ) -> Tensor:
        mask = hiding(attn_mask, query, key, is_causal=is_causal)
        return attend(query, key, value, mask, dropout_p, is_causal=False, **options)

    def without_weights(*args: Any, **options: Any) -> Any:
        given = HEADS.bind(*args, **options)
        given.arguments["need_weights"] = False  # so that it calls the function above
        return heads(*given.args, **given.kwargs)

    def eager(formula: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, query, key, value, mask, *args, **options: formula(
            module, query, key, value, hiding(mask, query, key, is_causal=False), *args, **options
        )

    with ExitStack() as stack:
        stack.enter_context(replaced(attend, attended))
        put(stack, functional, "multi_head_attention_forward", without_weights)
        for home in [] if model is None else homes_of_formulas(model):
            put(stack, home, EAGER, eager(getattr(home, EAGER)))
        yield


def put(stack: ExitStack, owner: object, name: str, value: object) -> None:
    """Set the attribute *name* of *owner* until *stack* closes."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
