"""A run that stores another explanation method: stored, derived again, and compared."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import explained_runs
import pytest
from builders import present
from explained_runs import LAST
from forging import verified
from page_cases import shown_of
from report_cases import build_report_of

from tracepaper.daemon.cli import invoke
from tracepaper.replay.checks.verify import verify_run
from tracepaper.replay.explain.attribution import explain_by
from tracepaper.replay.explain.decision_document import read_decision
from tracepaper.replay.explain.options import TypedMethod
from tracepaper.replay.explain.recompute import attribute
from tracepaper.replay.page import decisions
from tracepaper.replay.report.attention_charts import rollout_chart
from tracepaper.replay.report.past import Past, open_past
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.attention.methods import Rollout
from tracepaper.strategies.errors import AttentionInvalid
from tracepaper.strategies.networks.flash import FlashConfig
from tracepaper.strategies.time_buckets import weights_of

NORM = '[model.explanation]\nmethod = "norm"\nresidual = "0.25"\n'


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained_runs.replayed(tmp_path_factory.mktemp("norm"), extra=NORM)


def past(database: Path) -> Past:
    return open_past(database, explained_runs.run_id(database), LAST)


def test_a_run_explained_otherwise_is_derived_again(database: Path) -> None:
    verification = verified(database, wanted=explained_runs.run_id(database))
    assert verification.passes
    assert verification.exact
    assert verification.agreed == verification.decisions > 0


def test_its_row_warns_of_quantiles_that_were_fitted_to_another(database: Path) -> None:
    with Reader.open(database) as reader:
        run = reader.run(explained_runs.run_id(database))
    assert any("uses another explanation" in warning for warning in run.warnings)
    kept = json.loads(run.config)["model"]["explanation"]
    assert (kept["method"], kept["residual"]) == ("norm", "0.25")


def test_its_decisions_are_opened_bar_by_bar_as_they_were_stored(database: Path) -> None:
    opened = past(database)
    assert opened.forecaster.method == Rollout(fusion="norm", residual_weight=0.25)
    difference = present(attribute(opened).largest_bucket_difference)
    assert difference < 1e-6


def test_another_method_begins_with_its_own_defaults(database: Path) -> None:
    opened = past(database)
    stored, _ = read_decision(database, explained_runs.run_id(database), LAST)
    assert stored.content_share is None
    same = explain_by(opened, TypedMethod(method="norm"))
    assert same.options["residual_weight"] == 0.25
    assert same.common == pytest.approx(1.0, abs=1e-5)
    usual = explain_by(opened, TypedMethod(method="rollout"))
    assert usual.options["residual_weight"] == 0.5
    assert usual.common < 0.99
    with pytest.raises(AttentionInvalid, match="The head weights are 'a,b'"):
        explain_by(opened, TypedMethod(method="rollout", head_weights="a,b"))


def test_a_record_that_says_another_explanation_does_not_hold(
    tmp_path: Path, database: Path
) -> None:
    """Verify derives the configured explanation; another method gives other rows."""
    run_id = explained_runs.run_id(database)
    forged = tmp_path / "forged.db"
    forged.write_bytes(database.read_bytes())
    for folder in database.parent.glob("run.db.*"):
        if folder.is_dir():
            (tmp_path / folder.name.replace("run.db", "forged.db")).symlink_to(folder)
    with sqlite3.connect(forged) as connection:
        (text,) = connection.execute("SELECT config FROM runs").fetchone()
        config = json.loads(text)
        config["model"]["explanation"]["method"] = "rollout"
        written = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        connection.execute("UPDATE runs SET config = ?", (written,))
    connection.close()
    verification = verified(forged, wanted=run_id)
    assert not verification.passes
    assert any("buckets" in difference.field for difference in verification.differences)


def test_a_run_by_relevance_is_derived_again_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Signs are kept, gates measure the rollout, and quantiles of the card stay valid."""
    relevance = '[model.explanation]\nmethod = "relevance"\n'
    database = explained_runs.replayed(tmp_path, mode="step", extra=relevance)
    run_id = explained_runs.run_id(database)
    with Reader.open(database) as reader:
        assert not any("uses another explanation" in words for words in reader.run(run_id).warnings)
        rows = [row for batch in reader.explanations(run_id) for row in batch]
        verification = verify_run(reader, database, run_id)
    assert verification.exact
    assert verification.agreed == verification.decisions > 0
    assert min(min(weights_of(buckets)) for _, buckets, *_ in rows) < 0
    stored = read_decision(database, run_id, LAST)[0]
    weights = [row["weight"] for row in stored.buckets]
    assert sum(map(abs, weights)) == pytest.approx(1.0, abs=1e-6)
    assert min(weights) < 0
    assert stored.content_share is None
    difference = attribute(open_past(database, run_id, LAST)).largest_bucket_difference
    assert difference is not None
    assert difference < 1e-6
    assert invoke(["explain", f"last:{LAST}", "--db", str(database)]) == 0
    assert "What moved its mean" in capsys.readouterr().out
    page = decisions.decision(shown_of(database), LAST)
    (table,) = [part for part in page.parts if part.get("key") == "looked"]
    assert table["aside"].startswith("relevance")
    by_rollout = explain_by(open_past(database, run_id, LAST), TypedMethod(method="rollout"))
    assert by_rollout.common < 0.9  # it is compared with the relevance that was stored
    report = build_report_of(database)
    heatmap = present(report.attention).heatmaps[0]
    assert "size of relevance by age" in rollout_chart(report, heatmap).caption


def test_a_model_over_whole_windows_stores_gradients(tmp_path: Path) -> None:
    full = FlashConfig(dim=16, layers=2, heads=2, window=40, horizons=(5, 30), mask="full")
    gradient = '[model.explanation]\nmethod = "gradient"\n'
    database = explained_runs.replayed(
        tmp_path, network=full, mode="step", bars=570, extra=gradient
    )
    run_id = explained_runs.run_id(database)
    verification = verified(database, wanted=run_id)
    assert verification.passes
    assert verification.decisions > 0
    opened = open_past(database, run_id, 570)
    assert opened.forecaster.method.name == "gradient"
    assert opened.forecaster.method.horizon == 30
    difference = present(attribute(opened).largest_bucket_difference)
    assert difference < 1e-6
    assert read_decision(database, run_id, 570)[0].buckets
