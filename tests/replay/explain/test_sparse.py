"""What ProbSparse saves, as ``explain --full`` says it of a decision."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
from report_cases import SAMPLE, replayed, typed

from tracepaper.storage.checkpoints import save
from tracepaper.strategies.networks.informer import InformerConfig

GATE = """
[gate]
confidence = "0"
direction = "0"
edge = "0"
shift = "1"
collapse = "-9"
[regime]
momentum = "0.6"
mean_reversion = "0.4"
"""


def test_explain_says_how_many_multiplications_probsparse_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = InformerConfig(dim=16, layers=3, heads=2, window=256)
    folder = tmp_path / "informer"
    save(folder, models.weights(config), models.card(config, temperature=1.0))
    told = f'[strategy]\nname = "attention"\n[model]\ncheckpoint = "{folder}"\n{GATE}'
    database = replayed(tmp_path, told, "--data", SAMPLE, "--to", "2025-05-26T20:30:00Z")
    code, out, _ = typed(capsys, "explain", "last", "--full", "--db", database)
    assert code == 0
    # Layers of 256 and 128 bars rank by 30 and 25 keys; of the last one 64 bars are seen by one.
    dense = 2 * 256**2 + 2 * 128**2 + 2 * 64
    sparse = 3 * 256 * 30 + 3 * 128 * 25 + 2 * 64
    computed = sparse + 256 * (256 - 30) + 128 * (128 - 25)
    said = " ".join(out.split())
    assert f"ProbSparse makes {sparse / dense:.1%} of the multiplications" in said
    assert f"and {computed / dense:.1%} where" in said
