"""Packages that need a device are handed the arguments that their interfaces document."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tracepaper.strategies.attention.flash import attend_by_package, flash_package
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid

MASKS = [Mask.full(), Mask(), Mask.window(1), Mask.window(7), Mask.window(30)]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    tensor = torch.randn(3, 2, 2, 24, 8, generator=torch.Generator().manual_seed(2))
    return tensor[0], tensor[1], tensor[2]


def by_matrices(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, sides: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return output [batch, time, head, dim] and a padded logsumexp, by dense matrices.

    A window's sides are inclusive, and below 0 where they are open.
    """
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))
    left, right = sides
    ahead = torch.arange(key.shape[2]) - torch.arange(query.shape[2])[:, None]
    hidden = torch.zeros(ahead.shape, dtype=torch.bool)
    if causal:
        hidden |= ahead > 0
    if left >= 0:
        hidden |= ahead < -left
    if right >= 0:
        hidden |= ahead > right
    scores = (query @ key.mT * scale).masked_fill(hidden, -torch.inf)
    padded = torch.nn.functional.pad(scores.logsumexp(-1), (0, 8))
    return (scores.softmax(-1) @ value).transpose(1, 2), padded


class Version(NamedTuple):
    """How a version answers: by its module, an option, its open sides, and what it returns."""

    module: str
    option: str  # that asks for the logsumexp; empty where there is none
    open_side: int | None  # an open side of a window
    answers: Callable[[Tensor, Tensor, bool], Any]  # with output, logsumexp and the option

    def fake_module(self) -> ModuleType:
        """Return its module, whose function has the parameters that its interface documents."""

        def flash_attn_func(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *,
            softmax_scale: float,
            causal: bool = False,
            window_size: tuple[int | None, int | None] = (self.open_side,) * 2,
            **options: bool,
        ) -> Any:
            assert options.keys() <= {self.option}
            assert self.open_side == -1 or -1 not in window_size, "an open side is None here"
            left, right = (-1 if side is None else side for side in window_size)
            attended = by_matrices(q, k, v, softmax_scale, causal, (left, right))
            return self.answers(*attended, options.get(self.option, False))

        parameters = signature(flash_attn_func)
        *named, _ = parameters.parameters.values()
        if self.option:
            named.append(Parameter(self.option, Parameter.KEYWORD_ONLY, default=False))
        vars(flash_attn_func)["__signature__"] = parameters.replace(parameters=named)
        module = ModuleType(self.module)
        vars(module)["flash_attn_func"] = flash_attn_func
        return module


VERSIONS = {
    # A matrix that is empty without dropout comes with the logsumexp.
    "2": Version(
        "flash_attn.flash_attn_interface", "return_attn_probs", -1,
        lambda output, logsumexp, wants_sums: (output, logsumexp, None) if wants_sums else output,
    ),
    "3": Version(
        "flash_attn_interface", "return_attn_probs", -1,
        lambda output, logsumexp, wants_sums: (output, logsumexp) if wants_sums else output,
    ),
    "3 early": Version(
        "flash_attn_interface", "", -1, lambda output, logsumexp, _: (output, logsumexp)
    ),
    "4": Version(
        "flash_attn.cute", "return_lse", None,
        lambda output, logsumexp, wants_sums: (output, logsumexp if wants_sums else None),
    ),
}  # fmt: skip
SILENT = Version("flash_attn_interface", "", -1, lambda output, _logsumexp, _wants_sums: output)


def install(version: Version, patch: pytest.MonkeyPatch) -> ModuleType:
    module = version.fake_module()
    parent, _, _ = version.module.rpartition(".")
    if parent:
        patch.setitem(sys.modules, parent, ModuleType(parent))
    patch.setitem(sys.modules, version.module, module)
    flash_package.cache_clear()
    return module


@pytest.fixture(params=VERSIONS)
def installed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """Each version's module under its own name."""
    yield install(VERSIONS[request.param], monkeypatch)
    flash_package.cache_clear()


def test_a_version_without_a_logsumexp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(SILENT, monkeypatch)
    with pytest.raises(AttentionInvalid, match="returns no logsumexp"):
        attend_by_package(*inputs(), Mask(), 0.3)
    flash_package.cache_clear()


@pytest.mark.parametrize("mask", MASKS)
def test_the_flash_package_sees_each_mask_as_we_do(installed: ModuleType, mask: Mask) -> None:
    assert flash_package() is installed
    query, key, value = inputs()
    output, logsumexp = attend_by_package(query, key, value, mask, 0.3)
    wanted = attend(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(output, wanted.output)
    torch.testing.assert_close(logsumexp, wanted.logsumexp)


def test_without_the_package_there_is_none() -> None:
    flash_package.cache_clear()
    assert flash_package() is None
