"""An attention of a user's own: what it gives is what is computed, explained and checked."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import mechanisms
import pytest
import torch
from learning import DAY_BARS, FORMS, learnable, recipe, write_csv

from tracepaper.daemon import cli
from tracepaper.storage import checkpoints
from tracepaper.strategies.api.model import find_class
from tracepaper.strategies.attention.reads import MatrixRead
from tracepaper.strategies.errors import (
    AttentionInvalid,
    CheckpointMismatch,
    ConfigInvalid,
    StrategyFailed,
)
from tracepaper.strategies.forecasters.build import build
from tracepaper.strategies.networks.custom import CustomConfig, CustomNetwork
from tracepaper.strategies.networks.flash import FlashConfig, FlashNetwork

FADING = "tracepaper.strategies.networks.custom:FadingAttention"
SIZES: Mapping[str, Any] = {
    "features": 5, "dim": 16, "layers": 2, "heads": 2, "window": 24, "horizons": (5, 30),
}  # fmt: skip


def network(name: str) -> CustomNetwork:
    torch.manual_seed(0)
    return CustomNetwork(
        CustomConfig(**SIZES, mechanism=name if ":" in name else f"mechanisms:{name}")
    ).eval()


def rows() -> torch.Tensor:
    return torch.randn(3, 24, 5, generator=torch.Generator().manual_seed(1))


def test_a_class_is_found_in_a_process_that_imports_nothing_else() -> None:
    code = """from tracepaper.strategies.api.model import find_class
print(find_class("tracepaper.strategies.builtin:TrendStrategy").made_of.__name__)"""
    words = [sys.executable, "-P", "-c", code]
    assert subprocess.run(words, check=True, capture_output=True).stdout == b"TrendStrategy\n"


def test_a_softmax_of_ones_own_says_what_the_built_in_network_says() -> None:
    custom = network("Softmax")
    built_in = FlashNetwork(FlashConfig(**SIZES, mask="causal")).eval()
    built_in.load_state_dict(custom.state_dict())
    x, positions = rows(), torch.arange(100, 124)
    for part, other in zip(custom(x, positions), built_in(x, positions), strict=True):
        if part is not None and other is not None:
            assert torch.allclose(part, other[:, -1:], atol=1e-5)
    explained, theirs = custom.explain(x[:1], positions), built_in.explain(x[:1], positions)
    assert torch.allclose(explained.rollout.weights, theirs.rollout.weights, atol=1e-6)
    assert torch.allclose(explained.confidence, theirs.confidence, atol=1e-5)


def test_the_rollout_is_the_product_of_the_matrices_that_the_class_gave() -> None:
    custom = network(FADING)
    with torch.no_grad():
        layers = custom.trace(rows()[:1]).reads
    product = torch.eye(24, dtype=torch.float64)
    for read in layers:
        assert isinstance(read, MatrixRead)
        product = (0.5 * torch.eye(24) + 0.5 * read.matrices[0].double().mean(dim=0)) @ product
    with torch.no_grad():
        rollout = custom.explain(rows()[:1], torch.arange(24)).rollout
    assert torch.allclose(rollout.weights[0, 0].double(), product[-1], atol=1e-6)
    assert float(rollout.weights.sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("TransposedRows", r"returned \[2, 2, 12, 11\] for weights of \[2, 2, 12, 12\]"),
        ("NoTensor", "returned list for weights of"),
        ("Double", "returned weights of torch.float64, torch.strided on cpu, and queries are of"),
        ("Sparse", "returned weights of torch.float32, torch.sparse_coo on cpu"),
        ("Infinite", "returned weights that are not finite"),
        ("Negative", "returned weights that are below 0"),
        ("UnscaledScores", "returned weights that are in rows that do not sum to 1"),
        ("Ahead", "returned weights that are above 0 on bars later"),
        ("PeekingRows", "gives a row other weights where later rows differ"),
        ("Crowd", "gives a row other weights where another window"),
        ("Chance", "gives a row other weights when it is called again"),
    ],
)
def test_what_gives_no_weights_is_refused_at_its_first_pass(name: str, sentence: str) -> None:
    custom = network(name)
    for _ in "ab":  # and again, where somebody went on
        with pytest.raises(AttentionInvalid, match=f"mechanisms:{name} {sentence}"):
            custom(rows())


def test_what_fails_or_is_no_mechanism_is_refused_in_a_sentence() -> None:
    with pytest.raises(StrategyFailed, match=r"failed in forward with ValueError.*mechanisms"):
        network("FailingRows")(rows())
    with pytest.raises(StrategyFailed, match="failed in forward with SystemExit: 3"):
        network("LeavingProcess")(rows())
    with pytest.raises(KeyboardInterrupt):
        network("InterruptedRows")(rows())
    with pytest.raises(StrategyFailed, match=r"Unmade failed .* with AttributeError"):
        network("Unmade")
    with pytest.raises(ConfigInvalid, match=r"is no tracepaper\.AttentionMechanism; derive"):
        network("NoMechanism")
    with pytest.raises(ConfigInvalid, match="cannot be imported"):
        CustomNetwork(CustomConfig(**SIZES, mechanism="nowhere_at_all:Decaying"))
    with pytest.raises(ConfigInvalid, match="correct the name after the colon"):
        network("Missing")
    with pytest.raises(ConfigInvalid, match="is no class; name one"):
        network("torch")
    with pytest.raises(ConfigInvalid, match="names no class"):
        CustomNetwork(CustomConfig(**SIZES))
    with pytest.raises(CheckpointMismatch, match="have changed since the model was trained"):
        CustomNetwork(CustomConfig(**SIZES, mechanism=FADING, source_sha256="ab" * 32))


def test_where_it_is_held_a_failing_pass_is_nan_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mechanisms.Sometimes, "broken", True)
    custom = network("Sometimes")
    texts: list[str] = []
    custom.hold_by(texts.append)
    failed = 0
    with torch.no_grad():
        for seed in range(2_000):
            x = torch.randn(1, 24, 5, generator=torch.Generator().manual_seed(seed))
            trace = custom.trace(x)
            outputs, [lowest, *_] = trace.outputs, trace.reads
            assert isinstance(lowest, MatrixRead)
            assert torch.allclose(lowest.matrices.sum(dim=-1), torch.ones(1, 2, 24), atol=1e-5)
            assert bool(outputs.mean.isnan().all()) == (len(texts) > failed)
            failed = len(texts)
    assert 0 < failed < 200
    [text] = set(texts)
    assert text.startswith("mechanisms:Sometimes returned weights that are not finite")


# ---------------------------------------------------------------- by the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    torch.set_num_threads(1)
    candles = write_csv(learnable(7 * DAY_BARS), root)
    for name, mechanism in (("net", FADING), ("faulty", "mechanisms:Sometimes")):
        words = ["train", recipe({**FORMS["custom"], "mechanism": mechanism}, root)]
        assert (
            cli.invoke([*map(str, words), "--data", str(candles), "--out", str(root / name)]) == 0
        )
    return root


def replayed(folder: Path, name: str, database: Path) -> Path:
    config = database.with_suffix(".toml")
    config.write_text(
        '[market]\nsymbols = ["AAAUSDT"]\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{folder / name}"\nthreads = 1\n[gate]\nhorizon = 30\n'
        '[regime]\nmomentum = "0.9"\nmean_reversion = "0.1"\n',
        encoding="utf-8",
    )
    candles = next(folder.glob("*.csv.gz"))
    words = ["replay", "-c", config, "--data", candles, "--from", "2023-11-20", "--db", database]
    assert cli.invoke(list(map(str, words))) == 0
    return database


def test_it_is_trained_replayed_verified_and_explained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = checkpoints.load(folder / "net").card["architecture"]
    source = find_class(FADING)
    assert (card["mechanism"], card["source_sha256"]) == (FADING, source.sha256)
    weights = checkpoints.load(folder / "net").tensors
    assert {"mechanisms.0.rate"} <= set(weights)  # learnt and stored with the others
    database = replayed(folder, "net", tmp_path / "run.db")
    capsys.readouterr()
    assert cli.invoke(["verify", "last", "--db", str(database), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agreed"] == document["decisions"] > 1_000
    assert cli.invoke(["explain", "last", "--db", str(database), "--full"]) == 0
    assert "own" in capsys.readouterr().out


def test_a_bar_that_it_fails_on_is_held_and_the_run_goes_on(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mechanisms.Sometimes, "broken", True)
    database = replayed(folder, "faulty", tmp_path / "run.db")
    err = capsys.readouterr().err
    assert cli.invoke(["verify", "last", "--db", str(database), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agreed"] == document["decisions"] > 1_000
    with closing(sqlite3.connect(database)) as db:
        refused = dict(db.execute("SELECT refused_by, count(*) FROM v_decisions GROUP BY 1"))
    assert 0 < refused["finite"] < 0.5 * document["decisions"]
    assert "mechanisms:Sometimes returned weights that are not finite" in err


def test_what_breaks_while_it_is_trained_ends_the_training_in_a_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mechanisms.Sometimes, "broken", True)
    words = [
        "train",
        recipe({**FORMS["custom"], "mechanism": "mechanisms:Sometimes"}, tmp_path),
    ]
    words += ["--data", next(folder.glob("*.csv.gz")), "--out", tmp_path / "net"]
    assert cli.invoke(list(map(str, words))) == 1
    assert "Sometimes returned weights that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "net").exists()


def test_a_changed_source_is_refused_where_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoints.load(folder / "net")
    build(checkpoint.card, checkpoint.tensors)
    changed = find_class(FADING)._replace(sha256="cd" * 32)
    monkeypatch.setattr("tracepaper.strategies.networks.custom.find_class", lambda _: changed)
    with pytest.raises(CheckpointMismatch, match="restore them, or train again"):
        build(checkpoint.card, checkpoint.tensors)
