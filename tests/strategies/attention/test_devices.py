"""Where a model runs: every tensor is made on its device, and what is missing is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import builders
import models
import numpy as np
import pytest
import torch

from tracepaper.strategies.attention import kernels
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features import rows
from tracepaper.strategies.forecasters.attribution import Probe
from tracepaper.strategies.forecasters.build import RunOptions, build, require_device
from tracepaper.strategies.forecasters.outputs import TrainedModel
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork

BARS = builders.bars(900, seed=5)
SCHEMA = rows.schema("v2-1m")
WINDOW = 150
CONTEXT = WINDOW + SCHEMA.lookback - 1
WINDOW_BARS = builders.bars(CONTEXT + 5, seed=5)
KINDS = ("informer", "full")


def network(kind: str) -> InformerNetwork | FlashNetwork:
    torch.manual_seed(2)
    if kind == "informer":
        return InformerNetwork(InformerConfig(dim=16, layers=2, heads=2, window=WINDOW))
    return FlashNetwork(FlashConfig(dim=16, layers=2, heads=2, window=WINDOW, mask="full"))


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Make every tensor that names no device on another one, where it meets ours in an error."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("encoding", ["rope", "alibi", "learned", "sinusoidal"])
@pytest.mark.usefixtures("elsewhere")
def test_a_stream_makes_every_tensor_where_its_weights_are(encoding: str) -> None:
    with torch.device("cpu"):
        forecaster = models.forecaster(replace(models.SMALL, encoding=encoding, clock=("week",)))
    forecaster.warm("linear:BTCUSDT", BARS[:700])
    assert forecaster.step(BARS[700]) is not None
    assert forecaster.scan(BARS[701:800])[-1] is not None
    assert len(forecaster.explain("linear:BTCUSDT").weights) == 148


@pytest.mark.usefixtures("elsewhere")
def test_streams_in_one_batch_make_every_tensor_where_their_weights_are() -> None:
    with torch.device("cpu"):
        forecaster = models.forecaster()
    names = ("linear:BTCUSDT", "linear:ETHUSDT")
    bars = {name: builders.bars(760, seed=1, instrument_id=name) for name in names}
    for name in names:
        forecaster.warm(name, bars[name][:750])
    for at in range(750, 760):
        assert None not in forecaster.predict_many([bars[name][at] for name in names])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("elsewhere")
def test_a_window_makes_every_tensor_where_its_weights_are(kind: str) -> None:
    forecaster = windowed(kind)
    forecaster.warm("linear:BTCUSDT", WINDOW_BARS[:CONTEXT])
    assert forecaster.step(WINDOW_BARS[CONTEXT]) is not None
    assert forecaster.device == "cpu"


@pytest.mark.usefixtures("elsewhere")
def test_an_attribution_makes_every_tensor_where_the_weights_are() -> None:
    with torch.device("cpu"):
        forecaster = models.forecaster()
    probe = Probe(forecaster, BARS[: forecaster.context], horizon=30)
    assert np.isfinite(probe.contributions(nodes=2).mean_return).all()


def test_half_numbers_forecast_what_float32_does() -> None:
    answers = []
    for dtype in ("float32", "bfloat16"):
        forecaster = windowed("full", dtype=dtype)
        forecaster.warm("linear:BTCUSDT", WINDOW_BARS[:CONTEXT])
        answers.append(forecaster.step(WINDOW_BARS[CONTEXT]))
        assert forecaster.dtype == dtype
    plain, half = answers
    assert plain is not None
    assert half is not None
    assert plain != half
    np.testing.assert_allclose(half.p_up, plain.p_up, atol=0.02)
    assert half.explanation is not None
    assert half.explanation.l1_error is not None
    assert half.explanation.l1_error < 1e-4  # 0 where the sums come out even


def windowed(kind: str, dtype: str = "float32") -> WindowedForecaster:
    with torch.device("cpu"):
        model = TrainedModel(network(kind), SCHEMA, "m", "0" * 64, (1.0, 1.0, 1.0), 0.0, None)
    return WindowedForecaster(model, threads=1, backend="sdpa", dtype=dtype)


@pytest.mark.parametrize(
    ("count", "device", "words"),
    [
        (0, "cuda", "finds 0 CUDA devices"),
        (2, "cuda:2", "finds 2 CUDA devices"),
        (2, "cuda:1", ""),
        (2, "cuda", ""),
        (0, "cpu", ""),
    ],
)
def test_a_device_that_is_not_there_is_said(
    count: int, device: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if not words:
        require_device(device)
        return
    with pytest.raises(ConfigInvalid, match=words):
        require_device(device)


def test_a_network_over_whole_windows_takes_the_flash_package_in_half_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = FlashConfig(dim=16, layers=1, heads=2, window=50, mask="full")
    card, tensors = models.card(config), models.network(config).state_dict()
    monkeypatch.setattr(kernels, "available", lambda _: ("flash_attn", "sdpa", "chunked"))
    assert build(card, tensors, RunOptions(backend="flash_attn")).dtype == "bfloat16"
    assert build(card, tensors, RunOptions(backend="sdpa")).dtype == "float32"
    stream = models.card()
    with pytest.raises(ConfigInvalid, match="attends by tiles"):
        build(stream, models.network().state_dict(), RunOptions(backend="flash_attn"))
