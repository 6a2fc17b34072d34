"""``models`` and ``evaluate`` on cards that hold anything: their facts, or one sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path

import learning
import models
import numpy as np
import pytest
import torch
from command_line import Cli

import tracepaper
from tracepaper.replay.archive.read import read_candles
from tracepaper.storage.checkpoints import CARD_NAME, save
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

ABSURD = ("nan", "-1", '"x"', "[]", "{}", "999999999999", "true")


def checkpoint(folder: Path) -> Path:
    card = {**models.card(temperature=1.0), "honesty": {"sentences": ["It is small."]}}
    card["split"] = {
        "train_until": "2025-01-01",
        "validation_until": "2025-02-01",
        "calibration_until": "2025-03-01",
        "embargo_bars": 10,
    }
    save(folder, models.network().state_dict(), card)
    return folder


def lines(folder: Path) -> list[str]:
    return (folder / CARD_NAME).read_text().splitlines()


def test_models_lists_a_checkpoint_with_its_facts(tmp_path: Path, cli: Cli) -> None:
    folder = checkpoint(tmp_path / "a")
    out = cli.out("models", tmp_path)
    assert "flash: 3 layers, window 50; receptive field 148 bars; horizons 5, 30, 240" in out
    assert str(folder) in out


def test_several_checkpoints_are_a_table_and_one_is_told(tmp_path: Path, cli: Cli) -> None:
    for name in ("a", "b"):
        checkpoint(tmp_path / name)
    first, *_ = documents = cli.json("models", "list", tmp_path)["models"]
    listed = cli.out("models", "list", tmp_path)
    for document in documents:
        row = next(
            line for line in listed.splitlines() if line.startswith(Path(document["folder"]).name)
        )
        assert document["card"]["model"]["id"] in row
    assert "It is small." not in listed
    assert "It is small." in cli.out("models", "list", first["folder"])


@pytest.mark.parametrize("value", ABSURD)
def test_no_card_gives_a_traceback(value: str, tmp_path: Path, cli: Cli) -> None:
    folder = checkpoint(tmp_path / "a")
    whole = lines(folder)
    candles = tmp_path / "BTCUSDT.csv"
    candles.write_text("open_time,open,high,low,close,volume\n0,1,1,1,1,1\n60000,1,1,1,1,1\n")
    for place, line in enumerate(whole):
        key, separator, _ = line.partition(" = ")
        if not separator:
            continue
        text = "\n".join([*whole[:place], f"{key} = {value}", *whole[place + 1 :]])
        (folder / CARD_NAME).write_text(text)
        tomllib.loads(text)
        for words in (["models", str(folder)], ["evaluate", str(folder), "--data", str(candles)]):
            answer = cli(*words)
            assert bool(answer.code) is bool(answer.err)
            assert answer.err.count("\n") <= 1, (line, answer.err[:300])
            assert "Traceback" not in answer.err


def test_a_network_is_checked_over_real_rows(tmp_path: Path, cli: Cli) -> None:
    folder = str(checkpoint(tmp_path / "a"))
    assert "Every layer is finite" in cli.out("models", "check", folder)
    document = cli.json("models", "check", folder)
    assert (document["rows"], document["windows"], len(document["heads"])) == (148, 4, 6)
    assert document["faults"] == []


def test_an_ensembles_network_is_checked_by_its_bundled_name(cli: Cli) -> None:
    document = cli.json("models", "check", "flash-15m")
    assert (document["rows"], len(document["heads"])) == (509, 16)


def test_a_dead_head_of_a_checkpoint_ends_with_exit_code_1(tmp_path: Path, cli: Cli) -> None:
    network = models.network()
    with torch.no_grad():
        next(network.layers()).project_out.weight[:, :8] = 0.0
    save(tmp_path / "dead", network.state_dict(), models.card(temperature=1.0))
    answer = cli("models", "check", tmp_path / "dead")
    assert answer.code == 1
    assert "it is dead" in answer.out
    assert "is not in order: Layer 0, head 0" in answer.err
    assert answer.err.count("\n") == 1


def test_a_call_gives_where_each_head_looked_from_the_newest_bar(tmp_path: Path) -> None:
    candles = learning.learnable(900, seed=1, symbol="AAAUSDT")
    path = learning.write_csv(candles, tmp_path)
    stored = tracepaper.open_checkpoint(str(checkpoint(tmp_path / "a")))
    maps = stored.attention(path)
    assert maps.open_time_ms.tolist() == candles.open_time_ms[-148:].tolist()
    forecaster = models.forecaster()
    forecaster.warm("linear:AAAUSDT", bars := read_candles(path).bars())
    for rows, look in zip(
        maps.layers, forecaster.attribution_by_layer("linear:AAAUSDT"), strict=True
    ):
        assert rows.shape == (2, 148)
        assert rows.sum(axis=1) == pytest.approx([1.0, 1.0])
        live = look.rows.numpy()
        assert rows[:, -live.shape[1] :] == pytest.approx(live, abs=1e-5)

    # An earlier bar knows no later one, and a frame says what its file does.
    earlier = stored.attention(path, at=bars[-101].open_time_ms)
    assert earlier.open_time_ms[-1] == bars[-101].open_time_ms
    short = {
        "open_time": [bar.open_time_ms for bar in bars[:-100]],
        **{
            name: [getattr(bar, name) / 10**candles.price_decimals for bar in bars[:-100]]
            for name in ("open", "high", "low", "close")
        },
        "volume": [bar.volume for bar in bars[:-100]],
    }
    for layer, alone in zip(earlier.layers, stored.attention(short).layers, strict=True):
        assert layer == pytest.approx(alone, abs=1e-5)
        assert np.abs(layer - maps.layers[0]).max() > 1e-3
    with pytest.raises(DataInvalid, match=r"hold no .* bars of 1m without a gap.*give more"):
        stored.attention(path, at=bars[300].open_time_ms)


def test_a_map_has_the_rollout_of_every_query_and_ends_with_that_of_the_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candles = learning.learnable(900, seed=1, symbol="AAAUSDT")
    path = learning.write_csv(candles, tmp_path)
    stored = tracepaper.open_checkpoint(str(checkpoint(tmp_path / "a")))
    monkeypatch.setattr("tracepaper.replay.learning.inspection.model.MAP_QUERIES", 60)
    opened_ms, weights = stored.attention_map(path)
    maps = stored.attention(path)
    assert opened_ms.tolist() == maps.open_time_ms.tolist()
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)), abs=1e-5)
    assert not np.triu(weights, 1).any()
    forecaster = models.forecaster()
    forecaster.warm("linear:AAAUSDT", read_candles(path).bars())
    live = np.array(forecaster.explain("linear:AAAUSDT").weights)
    assert weights[-1, -len(live) :] == pytest.approx(live, abs=1e-6)

    # An earlier query has the rollout of a pass that ends at it.
    rows, positions = stored.windows([str(path)])[-1]
    for query in (0, 40, 146):
        ended = slice(query + 1)
        explained = stored.network.explain(rows[:, ended], positions[ended])
        row = explained.rollout.weights[0, 0].numpy()
        assert weights[query, : query + 1] == pytest.approx(row, abs=1e-6)
    monkeypatch.setattr("tracepaper.replay.learning.inspection.model.MAP_BARS_MAX", 147)
    with pytest.raises(ConfigInvalid, match=r"at most 147 bars, .* needs 148; ask attention"):
        stored.attention_map(path)


def test_a_network_is_exported_and_answers_elsewhere(tmp_path: Path, cli: Cli) -> None:
    folder, path = checkpoint(tmp_path / "a"), tmp_path / "a.pt2"
    command = ["models", "export", str(folder), "--to", "torch", "--out", str(path)]
    file = cli.json(*command)
    assert (file["bars"], file["columns"], file["bytes"]) == (148, 78, path.stat().st_size)
    rows = torch.randn(1, 148, 78, generator=torch.Generator().manual_seed(9))
    positions = torch.arange(148) + 5
    document = torch.export.load(path).module()(rows, positions)
    with torch.no_grad():
        wanted = models.network()(rows, positions)
    torch.testing.assert_close(document["mean"], wanted.mean[:, -1], rtol=0, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.pt2"]
    assert "is there already" in cli.err(*command, code=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--to", "jax", "--out", "a.pt2"), "choose one of onnx, torch"),
        (("--to", "torch", "--out", "a.onnx"), "name a file that ends in .pt2"),
        (("--to", "torch", "--out", "no/a.pt2"), "There is no folder"),
        (("--to", "torch", "--out", "a" * 246 + ".pt2"), "cannot be written (File name too long)"),
        (("--to", "onnx", "--out", "a" * 500 + ".onnx"), "cannot be written (File name too long)"),
    ],
)
def test_an_export_that_cannot_be_is_one_sentence(
    options: tuple[str, ...], sentence: str, here: Path, cli: Cli
) -> None:
    folder = checkpoint(here / "a")
    assert sentence in cli.err("models", "export", folder, *options, code=2)
    assert [path.name for path in here.iterdir()] == ["a"]


def judged(folder: Path, qlike: list[float], signs: list[float], **more: object) -> Path:
    """Write a checkpoint whose card holds figures of these beside persistence at 30 bars."""
    card = {**models.card(horizon=30), "honesty": {"sentences": []}, **more}
    other = {"qlike": {"model": [0.1, 0.01], "ewma": [0.9, 0.01]}}
    card["features"] = {"schema_id": "v2-1m", "lookback": 20}
    card["figures"] = {
        "5": other,
        "30": {
            "qlike": {"model": qlike, "ewma": [0.4, 0.02], "tree": [0.1, 0.01]},
            "sign_accuracy": {
                "model": signs,
                "persistence": [0.48, 0.01],
                "reversed_persistence": [0.52, 0.01],
                "random": [0.5, 0.01],
            },
        },
    }
    save(folder, models.network().state_dict(), card)
    return folder


@pytest.mark.parametrize(
    ("qlike", "signs", "message"),
    [
        ([0.37, 0.02], [0.5, 0.01], ""),
        ([0.45, 0.02], [0.54, 0.01], ""),
        (
            [0.39, 0.02],
            [0.525, 0.01],
            "it has not beaten persistence: QLIKE 0.3900 ± 0.0200 beside",
        ),
        ([0.5, 0.02], [0.49, 0.001], "49.0 % ± 0.1 % of signs beside 52.0 % by persistence"),
    ],
)
def test_a_network_that_has_not_beaten_persistence_is_experimental(
    qlike: list[float], signs: list[float], message: str, tmp_path: Path, cli: Cli
) -> None:
    folder = judged(tmp_path / "a", qlike, signs)
    out = cli.out("models", folder)
    assert ("experimental" in out) == bool(message)
    assert message in out
    assert "receptive field 148 bars, context 167" in out
    [model] = cli.json("models", folder)["models"]
    assert bool(model["experimental"]) == bool(message)
