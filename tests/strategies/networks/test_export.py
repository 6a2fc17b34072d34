"""Exported networks answer as the original does, and what cannot be exported is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.checks import (
    Example,
    LastBar,
    export_onnx,
    export_program,
    export_torch,
    require_agreement,
    run_onnx,
)
from tracepaper.strategies.networks.cross_timeframe import CrossConfig, CrossNetwork
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.multi_timeframe import MultiscaleConfig, MultiscaleNetwork
from tracepaper.strategies.networks.multimodal import TradingConfig, TradingNetwork

torch.set_num_threads(1)


def network(kind: str) -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    made: nn.Module
    match kind:
        case "informer":
            made = InformerNetwork(InformerConfig(features=5, dim=8, layers=2, heads=2, window=40))
        case "decoder":
            decoded = InformerConfig(
                features=5, dim=8, layers=2, heads=2, window=40, decoder_layers=1, start_token=9
            )
            made = InformerNetwork(decoded)
        case "multiscale":
            small = MultiscaleConfig(
                features=5, dim=8, layers=1, heads=2, frames=(1, 4), tokens=(8, 9)
            )
            made = MultiscaleNetwork(small)
        case "cross":
            made = CrossNetwork(
                CrossConfig(features=5, dim=8, layers=2, heads=2, bars=16, frame=4, tokens=9)
            )
        case "trading":
            made = TradingNetwork(
                TradingConfig(
                    features=5, dim=8, layers=2, heads=2, window=20,
                    modalities=("price", "volume"), columns=(0, 0, 1, 0, 1),
                )
            )  # fmt: skip
        case "full":
            config = FlashConfig(features=5, dim=8, layers=2, heads=2, window=40, mask="full")
            made = FlashNetwork(config)
        case _:
            made = FlashNetwork(FlashConfig(features=5, dim=8, layers=2, heads=2, window=16))
    example = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval(), (example, torch.arange(29_000_003, 29_000_043))


def last(made: nn.Module, example: Example) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        said: dict[str, torch.Tensor] = LastBar(made)(*example)
        return said


@pytest.mark.parametrize("kind", ["informer", "decoder", "full", "window", "cross", "trading"])
def test_an_exported_program_answers_as_the_network(kind: str) -> None:
    made, example = network(kind)
    program = export_program(made, example)
    rows, positions = example[0].flip(1), example[1] + 1_440  # other rows, another day of the week
    found = program.module()(rows, positions)
    wanted = last(made, (rows, positions))
    assert list(found) == list(wanted)
    assert require_agreement(list(wanted.values()), list(found.values()), "test") < 1e-6
    assert not torch.allclose(wanted["mean"], last(made, example)["mean"])


def test_a_torch_file_answers_as_the_network_and_holds_its_card(tmp_path: Path) -> None:
    made, example = network("window")
    path = tmp_path / "network.pt2"
    assert export_torch(made, example, path, card="the card") < 1e-6
    beside = {"card.toml": ""}
    found = torch.export.load(path, extra_files=beside).module()(*example)
    assert beside["card.toml"] == "the card"
    wanted = last(made, example)
    assert require_agreement(list(wanted.values()), list(found.values()), "test") < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("kind", ["informer", "decoder", "full", "window", "trading"])
def test_an_onnx_file_answers_as_the_network(kind: str, tmp_path: Path) -> None:
    made, example = network(kind)
    path = tmp_path / "network.onnx"
    assert export_onnx(made, example, path, card="the card") < 1e-4
    found, wanted = run_onnx(path, example), last(made, example)
    assert list(found) == list(wanted)
    require_agreement(list(wanted.values()), list(found.values()), "ONNX")


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_one_sentence(tmp_path: Path) -> None:
    rows = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(3))
    made, _ = network("multiscale")
    example = (rows, torch.arange(29_000_003, 29_000_043))
    with pytest.raises(AttentionInvalid, match=r"an operation that ONNX lacks .* --to torch"):
        export_onnx(made, example, tmp_path / "network.onnx", card="")
    assert not list(tmp_path.iterdir())


def test_outputs_that_differ_are_refused() -> None:
    one = [torch.ones(2), None]
    assert require_agreement(one, [torch.ones(2)], "test") == 0.0
    with pytest.raises(AttentionInvalid, match=r"differs by 0\.1 of an output"):
        require_agreement(one, [torch.full((2,), 0.9)], "test")
    with pytest.raises(AttentionInvalid, match="differs by nan"):
        require_agreement(one, [torch.full((2,), float("nan"))], "test")
    with pytest.raises(AttentionInvalid, match="has other outputs"):
        require_agreement(one, [torch.ones(3)], "test")
