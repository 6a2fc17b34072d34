"""Relevance: how much each input adds to an output, with its sign, in one backward pass.

Under ``relevance_rules`` the gradient follows the rules of layer-wise relevance propagation
(AttnLRP, Achtibat et al., 2024, arXiv:2402.05602; CP-LRP, Ali et al., 2022, arXiv:2202.07304):
norms and activations scale relevance by the ratio of their output and input, each factor of a gated
product takes a half, and attention weights are constants. Inputs times that gradient then sum to
the output, less the share of biases; this sum tests that no rule is missing.

The rule is docs/attention.md, A38.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from .checks import RULES
from .errors import AttentionInvalid
from .replacing import EAGER, homes_of_formulas, put, replaced

_HOMES: Final = ("torch.nn.modules.activation", "transformers.activations")
"""Python modules whose classes are activations."""
_NO_ACTIVATIONS: Final = (nn.MultiheadAttention, nn.Softmax, nn.LogSoftmax)
_LEAST: Final = 1e-9


@contextmanager
def relevance_rules(
    model: nn.Module,
    *,
    gated: Sequence[tuple[str, ...]] = (("gate_proj", "up_proj"), ("gated_rise",)),
) -> Iterator[None]:
    """Inside the block the gradients of *model* are relevances; its outputs do not change.

    The rules are AttnLRP's (Achtibat et al., 2024, arXiv:2402.05602), and of attention CP-LRP's
    (Ali et al., 2022, arXiv:2202.07304): it passes relevance only through its values, so that
    relevances sum to the output. *gated* are the names of the two projections of a gated product,
    in the module that has both, or the name of one projection that gives both factors.
    """
    attend = functional.scaled_dot_product_attention

    def attended(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        return attend(query.detach(), key.detach(), value, *args, **options)

    def by_rules(formula: Callable[..., Any]) -> Callable[..., Any]:
        return lambda module, query, key, *given, **options: formula(
            module, query.detach(), key.detach(), *given, **options
        )

    with ExitStack() as stack:
        for handle in _hooked(model, gated):
            stack.callback(handle.remove)
        for home in homes_of_formulas(model):
            put(stack, home, EAGER, by_rules(getattr(home, EAGER)))
        RULES.append(model)
        stack.callback(RULES.pop)
        stack.enter_context(replaced(attend, attended))
        yield


def _hooked(model: nn.Module, gated: Sequence[tuple[str, ...]]) -> Iterator[RemovableHandle]:
    """Register the rules of norms, activations and gated products; yield the hooks' handles."""
    for module in model.modules():
        kind = type(module)
        homes = {base.__module__ for base in kind.__mro__}
        is_activation = not homes.isdisjoint(_HOMES) and not isinstance(module, _NO_ACTIVATIONS)
        if kind.__name__.endswith("Norm") or is_activation:
            yield module.register_forward_hook(_identity)
        for pair in gated:
            parts = [getattr(module, part, None) for part in pair]
            for part in parts if None not in parts else ():
                if isinstance(part, nn.Module):
                    yield part.register_forward_hook(_half)


def relevance(output: Tensor, inputs: Tensor) -> Tensor:
    """Return each input's signed contribution to the scalar *output*, of the shape of *inputs*.

    They have the unit of *output*, which they sum to. *output* must be computed from *inputs*
    inside ``relevance_rules``. Raises ``AttentionInvalid`` if no gradient connects them.
    """
    try:
        (slope,) = torch.autograd.grad(output.reshape(()), inputs, retain_graph=True)
    except RuntimeError as error:
        raise AttentionInvalid(
            f"The output does not follow from these inputs ({str(error).split('.')[0]}); let the "
            "inputs require a gradient, and call the model inside relevance_rules."
        ) from None
    return (inputs * slope).detach()


def _half(_module: nn.Module, _given: object, output: Tensor) -> Tensor:
    """Return *output*, half of it detached: half of its gradient passes."""
    return 0.5 * output + 0.5 * output.detach()


def _identity(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return *output* as the first input times their ratio, which is a constant."""
    size = inputs[0].detach()
    size = torch.where(size.abs() < _LEAST, torch.full_like(size, _LEAST), size)
    return inputs[0] * (output.detach() / size)
