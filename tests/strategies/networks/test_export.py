"""Exported networks answer as the original does, and what cannot be exported is refused."""

from __future__ import annotations

from pathlib import Path

import models
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

torch.set_num_threads(1)


def network(kind: str) -> tuple[nn.Module, Example]:
    model = (
        models.small("flash", by=0.1, window=40, mask="full", encoding="rope")
        if kind == "full"
        else models.small(kind, by=0.1, dropout=0.0)
    )
    time = model.config.receptive_field
    example = torch.randn(1, time, 4, generator=torch.Generator().manual_seed(3))
    return model, (example, torch.arange(29_000_003, 29_000_003 + time))


def last(module: nn.Module, example: Example) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = LastBar(module)(*example)
        return outputs


@pytest.mark.parametrize("kind", ["informer", "decoder", "full", "flash", "cross", "trading"])
def test_an_exported_program_answers_as_the_network(kind: str) -> None:
    model, example = network(kind)
    program = export_program(model, example)
    rows, positions = example[0].flip(1), example[1] + 1_440  # other rows, another day of the week
    answer = program.module()(rows, positions)
    wanted = last(model, (rows, positions))
    assert list(answer) == list(wanted)
    assert require_agreement(wanted, answer, "test") < 1e-6
    assert not torch.allclose(wanted["mean"], last(model, example)["mean"])


def test_a_torch_file_answers_as_the_network_and_holds_its_card(tmp_path: Path) -> None:
    model, example = network("flash")
    path = tmp_path / "network.pt2"
    assert export_torch(model, example, path, card="the card") < 1e-6
    extras = {"card.toml": ""}
    answer = torch.export.load(path, extra_files=extras).module()(*example)
    assert extras["card.toml"] == "the card"
    wanted = last(model, example)
    assert require_agreement(wanted, answer, "test") < 1e-6


@pytest.mark.long
@pytest.mark.parametrize("kind", ["informer", "decoder", "full", "flash", "trading"])
def test_an_onnx_file_answers_as_the_network(kind: str, tmp_path: Path) -> None:
    model, example = network(kind)
    path = tmp_path / "network.onnx"
    assert export_onnx(model, example, path, card="the card") < 1e-4
    answer, wanted = run_onnx(path, example), last(model, example)
    assert list(answer) == list(wanted)
    require_agreement(wanted, answer, "ONNX")


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_one_sentence(tmp_path: Path) -> None:
    model, example = network("multiscale")
    with pytest.raises(AttentionInvalid, match=r"an operation that ONNX lacks .* --to torch"):
        export_onnx(model, example, tmp_path / "network.onnx", card="")
    assert not list(tmp_path.iterdir())


def test_outputs_that_differ_are_refused() -> None:
    values = {"mean": torch.ones(2)}
    assert require_agreement(values, values, "test") == 0.0
    for other, sentence in (
        (torch.full((2,), 0.9), r"differs by 0\.1 of an output"),
        (torch.full((2,), float("nan")), "differs by nan"),
        (torch.ones(3), "has other outputs"),
    ):
        with pytest.raises(AttentionInvalid, match=sentence):
            require_agreement(values, {"mean": other}, "test")
