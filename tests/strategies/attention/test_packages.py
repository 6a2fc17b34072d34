"""Packages that need a device are handed the arguments that their interfaces document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tracepaper.strategies.attention.flash import FlashPackage, flash_package
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.errors import AttentionInvalid

MASKS = [Mask.full(), Mask(), Mask.window(1), Mask.window(7), Mask.window(30)]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    made = torch.randn(3, 2, 2, 24, 8, generator=torch.Generator().manual_seed(2))
    return made[0], made[1], made[2]


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


class Version2(ModuleType):
    """Returns a logsumexp, and a matrix that is empty without dropout, where they are asked for."""

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        *,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        return_attn_probs: bool = False,
    ) -> Any:
        assert softmax_scale is not None
        output, logsumexp = by_matrices(q, k, v, softmax_scale, causal, window_size)
        return (output, logsumexp, None) if return_attn_probs else output


class Version3(ModuleType):
    """Later builds of version 3: two results where they are asked for."""

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        return_attn_probs: bool = False,
    ) -> Any:
        assert softmax_scale is not None
        output, logsumexp = by_matrices(q, k, v, softmax_scale, causal, window_size)
        return (output, logsumexp) if return_attn_probs else output


class Version3Early(ModuleType):
    """Earlier builds of version 3: always two results, and no such option."""

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Any:
        assert softmax_scale is not None
        return by_matrices(q, k, v, softmax_scale, causal, window_size)


class Version4(ModuleType):
    """Version 4: open sides are None, and the logsumexp is None unless it is asked for."""

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int | None, int | None] = (None, None),
        return_lse: bool = False,
    ) -> Any:
        assert softmax_scale is not None
        assert -1 not in window_size, "an open side is None here"
        left, right = (-1 if side is None else side for side in window_size)
        output, logsumexp = by_matrices(q, k, v, softmax_scale, causal, (left, right))
        return output, logsumexp if return_lse else None


class Silent(ModuleType):
    """A version that gives no logsumexp at all."""

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Any:
        assert softmax_scale is not None
        return by_matrices(q, k, v, softmax_scale, causal, window_size)[0]


VERSIONS = {
    "2": ("flash_attn.flash_attn_interface", Version2),
    "3": ("flash_attn_interface", Version3),
    "3 early": ("flash_attn_interface", Version3Early),
    "4": ("flash_attn.cute", Version4),
}


def install(name: str, made_of: type[ModuleType], patch: pytest.MonkeyPatch) -> ModuleType:
    module = made_of(name)
    parent, _, _ = name.rpartition(".")
    if parent:
        patch.setitem(sys.modules, parent, ModuleType(parent))
    patch.setitem(sys.modules, name, module)
    flash_package.cache_clear()
    return module


@pytest.fixture(params=VERSIONS)
def installed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """Each version's module under its own name."""
    yield install(*VERSIONS[request.param], monkeypatch)
    flash_package.cache_clear()


def test_a_version_without_a_logsumexp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install("flash_attn_interface", Silent, monkeypatch)
    with pytest.raises(AttentionInvalid, match="returns no logsumexp"):
        FlashPackage.attend(*inputs(), Mask(), 0.3)
    flash_package.cache_clear()


@pytest.mark.parametrize("mask", MASKS)
def test_the_flash_package_sees_each_mask_as_we_do(installed: ModuleType, mask: Mask) -> None:
    assert flash_package() is installed
    query, key, value = inputs()
    output, logsumexp = FlashPackage.attend(query, key, value, mask, 0.3)
    wanted = attend(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(output, wanted.output)
    torch.testing.assert_close(logsumexp, wanted.logsumexp)


def test_without_the_package_there_is_none() -> None:
    flash_package.cache_clear()
    assert flash_package() is None
