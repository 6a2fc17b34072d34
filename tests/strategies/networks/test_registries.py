"""What is added to the networks is one function or class, registered: a fake of each kind is found.

Each fake is registered here and taken out again; nothing else is told of it.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import builders
import models
import pytest
import torch
from builders import present
from command_line import Cli
from fakes import registered
from learning import choose
from torch import Tensor, nn

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.diagnostics import diagnose
from tracepaper.strategies.api.model import KINDS, ModelKind, register
from tracepaper.strategies.attention import backends, kernels
from tracepaper.strategies.attention.backends import Backend, ChunkedBackend
from tracepaper.strategies.attention.masks import Mask
from tracepaper.strategies.attention.reads import MatrixRead
from tracepaper.strategies.errors import AttentionInvalid, ConfigInvalid
from tracepaper.strategies.forecasters.build import RunOptions, build, choose_backend
from tracepaper.strategies.networks import architecture, encodings, keys
from tracepaper.strategies.networks import architecture as heads
from tracepaper.strategies.networks.architecture import (
    HEADS,
    Head,
    Network,
    Outputs,
    Trace,
    heads_of,
)
from tracepaper.strategies.networks.encodings import Encoding


def tensors(time: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 1, 2, time, 8, generator=drawn)
    return query, key, value


def test_a_backend_is_one_entry(cli: Cli) -> None:
    backend = Backend(
        "fast", runs_on=lambda _: True, kernel=lambda *_: ChunkedBackend(), is_aligned=False
    )
    full = replace(models.SMALL, mask="full")
    with registered(backends.BACKENDS, lambda: backends.register(backend)):
        assert "fast" in kernels.available("cpu")
        for mask in (Mask.full(), Mask(), Mask.window(9)):
            attended = kernels.attend(*tensors(), mask, backend="fast")
            torch.testing.assert_close(attended, kernels.attend(*tensors(), mask))
        with pytest.raises(AttentionInvalid, match=r"choose auto or one of sdpa, .*fast"):
            kernels.resolve("faster", "cpu", torch.float32)
        weights = models.network(full).state_dict()
        assert build(models.card(full), weights, RunOptions(backend="fast")).backend == "fast"
        assert load(None, {"model": {"backend": "fast"}}).model.backend == "fast"
        assert any(
            "fast" in finding.detail for finding in diagnose(load(None, {}), Path("none.db"))
        )
    assert "fast" not in kernels.available("cpu")


def test_an_encoding_is_one_class(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Recent(Encoding):
        """Every head prefers the newest bars equally."""

        looks_back_only = True
        has_bias = True

        def bias(self, distance: Tensor) -> Tensor:
            return 0.1 * distance.float()[:, None]

    config = replace(models.SMALL, encoding="none")
    bars = builders.bars(900, seed=3)
    plain = models.forecaster(config).scan(bars)[-1]
    with registered(encodings.ENCODINGS, lambda: encodings.encoding("recent")(Recent)):
        near = present(models.forecaster(replace(config, encoding="recent")).scan(bars)[-1])
        recent, anywhere = (
            present(present(forecast).explanation).recent_mass for forecast in (near, plain)
        )
        assert present(recent) > present(anywhere)
        with pytest.raises(ConfigInvalid, match=r"choose one of rope, .*recent"):
            replace(config, encoding="?")
        with pytest.raises(ConfigInvalid, match="encoding recent looks back only"):
            replace(config, encoding="recent", mask="full")
        words = ["train", "--data", "none.csv", "--out", str(tmp_path), *choose("encoding=?")]
        assert invoke(words) != 0
        assert "none, recent" in capsys.readouterr().err


def test_a_head_is_a_field_and_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(HEADS) == Outputs._fields
    wider: Any = namedtuple("wider", (*Outputs._fields, "skew"))  # type: ignore[misc]  # noqa: PYI024 - made of another
    for name in ("map", "by_stream", "first", "cpu"):
        setattr(wider, name, getattr(Outputs, name))
    monkeypatch.setattr(heads, "Outputs", wider)
    monkeypatch.setitem(HEADS, "skew", Head(lambda *_: 2, lambda raw: raw.sum(-1)))
    torch.manual_seed(1)
    network = models.network(replace(models.SMALL, allocation=False))
    rows = torch.randn(1, 40, models.SMALL.features)
    whole: Any = network(rows)
    assert whole.skew.shape == whole.mean.shape
    assert whole.allocation is None
    assert network.heads.widths[-1] == 2
    assert whole.map(torch.neg).first(3).skew.equal(-whole.skew[:, :3])


@dataclass(frozen=True, slots=True)
class EchoConfig(keys.NetworkConfig):
    """The smallest architecture that there is."""

    dim: keys.Dim = 8
    window: keys.Window = 20
    horizons: keys.Horizons = (5, 30)


class Echo(Network):
    """Says something of the last bar, and looked at nothing else."""

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(config)
        self.embed = nn.Linear(config.features, config.dim)
        self.norm = nn.Identity()
        self.heads = heads_of(config)

    def run(self, x: Tensor, positions: Tensor, trace: Trace | None) -> Tensor:
        del positions
        if trace is not None:
            trace.attend(MatrixRead(torch.eye(x.shape[1])[None, None]))
        return self.embed(x)


def test_a_network_is_one_module() -> None:
    model_kind = ModelKind(
        "echo", "says it again", read=EchoConfig.read, make=Echo, backend=lambda _: "echoing"
    )
    card = models.card()
    card["model"]["kind"], card["architecture"] = "echo", {"window": 30}
    weights = Echo(EchoConfig(window=30)).state_dict()
    with pytest.raises(ConfigInvalid, match=r"names the kind 'echo'; use .*informer"):
        build(card, weights)
    with registered(KINDS, lambda: register(model_kind)):
        with pytest.raises(ConfigInvalid, match=r"architecture\.depth is unknown"):
            build(card | {"architecture": {"depth": 1}}, weights)
        assert choose_backend(card, "auto", device="cpu") == "echoing"
        forecaster = build(card, weights)
        assert (forecaster.backend, forecaster.horizons) == ("echoing", (5, 30))
        answers = [forecaster.step(bar) for bar in builders.bars(forecaster.context, seed=3)]
        last = answers[-1]
        assert answers[-2] is None
        assert last is not None
        assert present(last.explanation).recent_mass == 1.0
        with pytest.raises(ConfigInvalid, match=r"use .*informer.* or echo"):
            architecture.kind_of("choir")
