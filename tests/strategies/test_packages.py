"""Packages that need a device are handed the arguments that their interfaces document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tracepaper.strategies.attention import packages
from tracepaper.strategies.attention.backends import flash_package
from tracepaper.strategies.attention.kernels import attend
from tracepaper.strategies.attention.masks import Mask

MASKS = [Mask.full(), Mask.causal(), Mask.window(1), Mask.window(7), Mask.window(30)]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    made = torch.randn(3, 2, 2, 24, 8, generator=torch.Generator().manual_seed(2))
    return made[0], made[1], made[2]


class FlashAttention(ModuleType):
    """The interface of the package's README, by dense matrices: time before head, inclusive."""

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        softmax_scale: float,
        causal: bool,
        window_size: tuple[int, int],
        return_attn_probs: bool,
    ) -> tuple[Tensor, Tensor, None]:
        assert return_attn_probs, "without it the package returns no logsumexp"
        query, key, value = (x.transpose(1, 2) for x in (q, k, v))
        left, right = window_size
        ahead = torch.arange(key.shape[2]) - torch.arange(query.shape[2])[:, None]
        hidden = torch.zeros(ahead.shape, dtype=torch.bool)
        if causal:
            hidden |= ahead > 0
        if left >= 0:
            hidden |= ahead < -left
        if right >= 0:
            hidden |= ahead > right
        scores = (query @ key.mT * softmax_scale).masked_fill(hidden, -torch.inf)
        padded = torch.nn.functional.pad(scores.logsumexp(-1), (0, 8))
        return (scores.softmax(-1) @ value).transpose(1, 2), padded, None


@pytest.fixture(params=["flash_attn_interface", "flash_attn.flash_attn_interface"])
def installed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """Version 3's module, then version 2's."""
    module = FlashAttention(request.param)
    parent, _, _ = request.param.rpartition(".")
    if parent:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, request.param, module)
    flash_package.cache_clear()
    yield module
    flash_package.cache_clear()


@pytest.mark.parametrize("mask", MASKS)
def test_the_flash_package_sees_each_mask_as_we_do(installed: ModuleType, mask: Mask) -> None:
    assert flash_package() is installed
    query, key, value = inputs()
    output, logsumexp = packages.FlashPackage.attend(query, key, value, mask, 0.3)
    wanted = attend(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(output, wanted.output)
    torch.testing.assert_close(logsumexp, wanted.logsumexp)


def test_without_the_package_there_is_none() -> None:
    flash_package.cache_clear()
    assert flash_package() is None


@pytest.mark.parametrize("mask", MASKS)
def test_flex_sees_each_mask_as_we_do(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The uncompiled form: the same masks and the same logsumexp, on any machine."""
    monkeypatch.setattr(packages, "_flex", lambda: flex_attention)
    query, key, value = inputs()
    output, logsumexp = packages.flex_attend(query, key, value, mask, 0.3)
    wanted = attend(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(output, wanted.output)
    torch.testing.assert_close(logsumexp, wanted.logsumexp)
