"""A card and its tensors become a forecaster, or one sentence says why not."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import builders
import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.strategies.attention.backends import kernel_for
from tracepaper.strategies.errors import AttentionInvalid, CheckpointMismatch, ConfigInvalid, Fatal
from tracepaper.strategies.forecasters.build import RunOptions, build, computing, restore
from tracepaper.strategies.forecasters.windowed import WindowedForecaster
from tracepaper.strategies.networks.informer import InformerConfig, InformerNetwork
from tracepaper.strategies.networks.stream import stream_backends, stream_bytes

QUANTILES = [x / 100 for x in range(1, 100)]


def test_the_network_is_the_one_that_was_stored() -> None:
    net = models.network()
    again = restore(models.card(), net.state_dict())
    x = torch.ones(1, 60, 78)
    assert torch.equal(again(x).mean, net(x).mean)
    assert not again.training


def test_identity_and_calibration_come_from_the_card() -> None:
    card = models.card(
        quantiles={"confidence_entropy": QUANTILES},
        slope={"5": 0.9, "30": 0.5, "240": 0.1},
        content_free=0.25,
        temperature={"5": 1.0, "30": 2.0, "240": 3.0},
    )
    forecaster = build(card, models.network().state_dict(), RunOptions(mode="scan"))
    assert (forecaster.model_id, forecaster.model_sha256) == ("0123456789ab", "01" * 32)
    assert forecaster.mode == "scan"
    assert forecaster.calibration is not None
    assert forecaster.calibration.slope == {5: 0.9, 30: 0.5, 240: 0.1}
    assert forecaster.calibration.quantiles["confidence_entropy"] == tuple(QUANTILES)
    assert forecaster.calibration.content_free == 0.25


def test_a_card_without_quantiles_has_no_calibration() -> None:
    assert models.forecaster().calibration is None


def test_the_thread_count_is_set() -> None:
    before = torch.get_num_threads()
    try:
        build(models.card(), models.network().state_dict(), RunOptions(threads=2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_network_of_order_books_is_no_model_of_bars() -> None:
    card = models.card()
    card["model"]["kind"] = "orderbook"
    with pytest.raises(ConfigInvalid, match="reads files of `tracepaper data record`, not bars"):
        build(card, models.network().state_dict())


def test_another_kind_of_model_is_refused() -> None:
    card = models.card()
    card["model"]["kind"] = "oracle"
    with pytest.raises(ConfigInvalid, match="names the kind 'oracle'"):
        build(card, models.network().state_dict())


@pytest.mark.parametrize(("mode", "made_with"), [("scan", "scan"), ("batched", "step")])
def test_a_network_that_sees_its_whole_window_scans_or_steps(mode: str, made_with: str) -> None:
    config = replace(models.SMALL, mask="full")
    model = build(models.card(config), models.network(config).state_dict(), RunOptions(mode=mode))
    assert isinstance(model, WindowedForecaster)
    assert model.mode == made_with
    assert model.model_id == "0123456789ab"


def test_an_informer_is_built_from_its_card() -> None:
    card, tensors = informer()
    model = build(card, tensors)
    assert isinstance(model, WindowedForecaster)
    assert model.horizons == (5, 30, 240)


WHOLE = models.card(
    quantiles={"confidence_entropy": QUANTILES},
    slope={"5": 0.9, "30": 0.5, "240": 0.1},
    temperature={"5": 1.0, "30": 2.0, "240": 3.0},
)
BROKEN: tuple[Any, ...] = (None, "x", -3, 0, 2.5, True, [], ["x"], {}, {"x": "x"})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_card_that_is_wrong_anywhere_is_loaded_or_refused_in_a_sentence(
    data: st.DataObject,
) -> None:
    card: dict[str, Any] = json.loads(json.dumps(WHOLE))
    section, place = card, data.draw(st.sampled_from(sorted(card)))
    while isinstance(section[place], dict) and section[place] and data.draw(st.booleans()):
        section = section[place]
        place = data.draw(st.sampled_from(sorted(section)))
    if data.draw(st.booleans()):
        del section[place]
    else:
        section[place] = data.draw(st.sampled_from(BROKEN))
    with suppress(Fatal):
        build(card, models.network().state_dict())


def test_tensors_that_do_not_fit_the_card_are_named() -> None:
    whole = models.network().state_dict()
    for tensors, name in (
        ({k: v for k, v in whole.items() if k != "embed.bias"}, "embed.bias"),
        ({**whole, "embed.bias": torch.zeros(3)}, r"embed.bias: .*\[3\]"),
        ({**whole, "wings": torch.zeros(3)}, "wings"),
    ):
        with pytest.raises(CheckpointMismatch, match=name):
            restore(models.card(), tensors)


def test_a_network_that_overflows_is_refused_by_the_name_of_its_layer() -> None:
    tensors = models.network().state_dict()
    tensors["blocks.1.mlp.fall.weight"] = torch.full((16, 64), 3e38)
    with pytest.raises(CheckpointMismatch, match=r"Layer blocks\.1\.mlp\.fall \(Lin"):
        restore(models.card(), tensors)


def informer() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = InformerConfig(dim=8, layers=2, heads=2, window=32)
    card = models.card()
    card["model"]["kind"] = "informer"
    card["architecture"] = {**asdict(config), "horizons": list(config.horizons)}
    card["architecture"]["quantiles"] = []
    return card, InformerNetwork(config).state_dict()


def test_what_attends_is_named_as_it_is() -> None:
    full = replace(models.SMALL, mask="full")
    assert models.forecaster().backend == stream_backends(models.SMALL, "cpu")[0]
    assert build(*informer()).backend == "probsparse"
    assert build(models.card(full), models.network(full).state_dict()).backend == "sdpa"


def test_a_backend_asked_for_by_name_is_the_one_that_attends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(models.SMALL, mask="full")
    answers = []
    for backend in ("sdpa", "chunked"):
        model = build(
            models.card(config), models.network(config).state_dict(), RunOptions(backend=backend)
        )
        used: list[str] = []

        def noted(name: str, *rest: Any, used: list[str] = used) -> Any:
            used.append(name)
            return kernel_for(name, *rest)

        with monkeypatch.context() as patch:
            patch.setattr("tracepaper.strategies.attention.kernels.kernel_for", noted)
            answers.append([model.step(bar) for bar in builders.bars(model.context, seed=3)][-1])
        assert model.backend == backend
        assert set(used) == {backend}
    assert all(answer is not None for answer in answers)
    means = [answer.mean_return for answer in answers if answer is not None]
    assert means[1:] == [pytest.approx(means[0], rel=1e-4)]


@pytest.mark.parametrize("backend", ["sdpa", "flash_attn", "sage"])
def test_a_stream_and_an_informer_refuse_a_backend_that_they_do_not_use(backend: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"'{backend}'.*set it to auto or tiles"):
        build(models.card(), models.network().state_dict(), RunOptions(backend=backend))
    with pytest.raises(ConfigInvalid, match=rf"'{backend}'.*set it to auto or probsparse"):
        build(*informer(), RunOptions(backend=backend))


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [("flash_attn", "flash_attn is not available on cpu"), ("sage", "no attention backend 'sage'")],
)
def test_a_kernel_that_this_machine_lacks_is_refused(backend: str, sentence: str) -> None:
    config = replace(models.SMALL, mask="full")
    with pytest.raises(AttentionInvalid, match=sentence):
        build(models.card(config), models.network(config).state_dict(), RunOptions(backend=backend))


def test_a_window_that_cannot_fit_is_refused_with_the_one_that_would() -> None:
    small = replace(models.SMALL, dim=4, layers=1, heads=1, window=65_536)
    tensors, huge = models.network(small).state_dict(), models.card(small)
    need = stream_bytes(small, instruments=3)
    assert build(huge, tensors, RunOptions(instruments=3, free_bytes=need)).context > 65_536
    options = RunOptions(instruments=3, free_bytes=need // 3)
    with pytest.raises(AttentionInvalid, match=r"A window of 65,536 bars needs") as refused:
        build(huge, tensors, options)
    named = re.search(r"use a window of ([\d,]+) bars or fewer", str(refused.value))
    assert named is not None
    longest = int(named[1].replace(",", ""))
    build(models.card(replace(small, window=longest)), tensors, options)
    with pytest.raises(AttentionInvalid, match="bars or fewer"):
        build(models.card(replace(small, window=longest + 64)), tensors, options)


def test_a_window_seen_as_a_whole_is_refused_as_well() -> None:
    config = replace(models.SMALL, mask="full", window=65_536)
    with pytest.raises(AttentionInvalid, match=r"A window of 65,536 bars needs .* bars or fewer"):
        build(models.card(config), {}, RunOptions(free_bytes=30 << 20))
    card, tensors = informer()
    with pytest.raises(AttentionInvalid, match="use a smaller network"):
        build(card, tensors, RunOptions(free_bytes=1_000))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="this system says otherwise")
def test_the_maker_and_model_of_the_processor_are_part_of_what_bits_are_promised_for() -> None:
    # Torch's capability alone is the same on processors whose libraries round differently.
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if (maker := re.search(r"vendor_id\s*: (\S+)", text)) is None:
        pytest.skip("this kind of processor names no maker")
    family, model = (
        match[1]
        for name in ("cpu family", "model")
        if (match := re.search(rf"^{name}\s*: (\d+)", text, re.MULTILINE)) is not None
    )
    capability = torch.backends.cpu.get_cpu_capability()
    assert computing()[1] == f"{capability} of {maker[1]} {family}/{model}"
