"""Exported networks answer as the original does, and what cannot be exported is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.export import (
    export_onnx,
    export_program,
    require_agreement,
    run_onnx,
)
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

torch.set_num_threads(1)


def network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    made: nn.Module
    match kind:
        case "informer":
            made = InformerNetwork(InformerConfig(features=5, dim=8, layers=2, heads=2, window=40))
        case "full":
            config = FlashConfig(features=5, dim=8, layers=2, heads=2, window=40, mask="full")
            made = FlashNetwork(config)
        case _:
            made = FlashNetwork(FlashConfig(features=5, dim=8, layers=2, heads=2, window=16))
    example = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(3))
    return made.eval(), example


@pytest.mark.parametrize("kind", ["informer", "full", "window"])
def test_an_exported_program_answers_as_the_network(kind: str) -> None:
    made, example = network(kind)
    program = export_program(made, example)
    with torch.no_grad():
        assert require_agreement(made(example), program.module()(example), "test") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["informer", "full", "window"])
def test_an_onnx_file_answers_as_the_network(kind: str, tmp_path: Path) -> None:
    made, example = network(kind)
    path = tmp_path / "network.onnx"
    assert export_onnx(made, example, path) < 1e-4
    with torch.no_grad():
        require_agreement(made(example), run_onnx(path, example), "ONNX")


def test_outputs_that_differ_are_refused() -> None:
    one = [torch.ones(2), None]
    assert require_agreement(one, [torch.ones(2)], "test") == 0.0
    with pytest.raises(AttentionInvalid, match=r"differs by 0\.1 of an output"):
        require_agreement(one, [torch.full((2,), 0.9)], "test")
    with pytest.raises(AttentionInvalid, match="differs by nan"):
        require_agreement(one, [torch.full((2,), float("nan"))], "test")
    with pytest.raises(AttentionInvalid, match="has other outputs"):
        require_agreement(one, [torch.ones(3)], "test")
