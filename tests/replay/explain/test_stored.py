"""Decisions are found by name, and one without an attribution says why."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import explained_runs
import pytest
from programs import ROOT
from rich.console import Console

from tracepaper.daemon.cli import invoke
from tracepaper.replay.document.terminal import show
from tracepaper.replay.document.values import BAR_CELLS
from tracepaper.replay.explain.decision import StoredDecision, counterfactuals_of
from tracepaper.replay.explain.decision_document import attention_table, read_decision, stored_parts
from tracepaper.replay.explain.place import locate
from tracepaper.replay.report.honesty import entropy_sentence
from tracepaper.strategies.errors import DataInvalid


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explained_runs.replayed(tmp_path_factory.mktemp("stored"), strategy="sma_cross", bars=60)


def test_a_decision_is_found_by_last_by_prefix_and_by_file(database: Path) -> None:
    run_id = explained_runs.run_id(database)
    wanted = (database, run_id, 40)
    assert locate("last:40", database) == wanted
    assert locate(f"{run_id[:6]}:40", database) == wanted
    assert locate(f"{database}#{run_id}:40", None) == wanted
    assert locate(f"{database}#last:40", None) == wanted
    with pytest.raises(DataInvalid, match="decided no bar that was open at 2020-01-01"):
        locate("last:2020-01-01", database)


@pytest.mark.parametrize(
    "typed",
    [
        "{time}", "last:{time}", "{run}:{time}", "{file}#last:{time}",
        "{date}T{time}", "last:{date}T{time}", "last:{date} {time}:30", "{run}:{date}T{time}Z",
    ],
)  # fmt: skip
def test_a_decision_is_found_by_a_time_at_which_its_bar_was_open(
    database: Path, typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = explained_runs.run_id(database)
    opened = read_decision(database, run_id, 40)[0].decision["open_time_iso"]
    date, time = opened[:10], opened[11:16]
    text = typed.format(run=run_id, file=database, date=date, time=time)
    assert locate(text, database) == (database, run_id, 40)
    assert invoke(["explain", "--time", time, "--db", str(database), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["sequence"] == 40


def test_a_missing_decision_names_the_nearest(database: Path) -> None:
    run_id = explained_runs.run_id(database)
    with pytest.raises(DataInvalid, match=rf"no decision 999; the nearest is {run_id}:60\."):
        read_decision(database, run_id, 999)[0]


def test_without_a_run_the_last_decision_is_explained(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["explain", "--db", str(database), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["sequence"] == 60


def test_a_decision_without_a_model_says_so(database: Path) -> None:
    silent = read_decision(database, explained_runs.run_id(database), 40)[0]
    assert not silent.has_forecast
    assert silent.buckets == ()
    assert [row["ordinal"] for row in silent.gates] == list(range(len(silent.gates)))
    assert (
        silent.no_attribution
        == "The strategy sma_cross uses no model, so there is no attention to show."
    )


@pytest.mark.parametrize(
    ("decision", "gates", "words"),
    [
        ({"late_deadline_ms": 1_000}, [], "did not answer within its 1,000 ms"),
        (
            {},
            [{"gate": "warm", "passed": 0, "measure": 100.0, "threshold": 7_201.0}],
            "not yet warm: 100 of the 7,201 bars",
        ),
        ({"horizon": 10}, [], "forecasts without an explanation"),
        ({}, [], "gave no forecast for this bar"),
    ],
)
def test_silence_has_a_reason(
    decision: dict[str, Any], gates: list[dict[str, Any]], words: str
) -> None:
    row = {"late_deadline_ms": None, "horizon": None, **decision}
    run = {"model_id": "a1", "strategy": "attention", "config": '{"model": {}}'}
    stored = StoredDecision(run, row, tuple(gates), ())
    assert stored.no_attribution is not None
    assert words in stored.no_attribution


@pytest.mark.parametrize(
    ("action", "reason", "first", "went_on"),
    [
        ("HOLD", "refused by edge", "HOLD (refused by edge)\n", False),
        ("FLAT", "refused by edge", "FLAT (since edge refused)\n", False),
        ("FLAT", "no trend up", "FLAT (edge refused; the exit is executed), no trend up\n", True),
    ],
)
def test_an_exit_that_a_gate_refused_is_said_to_have_gone_on(
    database: Path, action: str, reason: str, first: str, *, went_on: bool
) -> None:
    stored = read_decision(database, explained_runs.run_id(database), 40)[0]
    outcome = {"action": action, "reason": reason, "refused_by": "edge", "allowed": False}
    gates = tuple({**row, "gate": "edge", "passed": False} for row in stored.gates[:1])
    refused = replace(stored, decision={**stored.decision, **outcome}, gates=gates)
    console = Console(width=200)
    with console.capture() as capture:
        show(console, stored_parts(refused, explained_runs.told_of(database, refused)))
    assert f": {first}" in capture.get()
    assert ("The FLAT was carried out anyway." in capture.get()) is went_on


def test_what_a_higher_time_frame_lacks_is_not_called_a_bar(database: Path) -> None:
    """The count of bars stops one short of the warm-up if a timeframe's candles are missing."""
    stored = read_decision(database, explained_runs.run_id(database), 40)[0]
    [warm] = [row for row in stored.gates if row["gate"] == "warm"]

    def sentence_at(bars: int) -> str:
        cold = {**warm, "measure": float(bars), "threshold": 991.0, "passed": False}
        decision = {**stored.decision, "allowed": False, "refused_by": "warm"}
        return counterfactuals_of(replace(stored, decision=decision, gates=(cold,))).sentence

    assert sentence_at(990) == "It needs one more bar, or candles of a higher timeframe."
    assert sentence_at(900) == "It needs 91 more bars."


def test_what_is_older_than_every_block_has_no_bar_and_shortens_none() -> None:
    blocks = (1_746_057_600_000, 0.15), (1_746_061_440_000, -0.05)
    rows = [
        {"bucket": str(place), "from_open_time_ms": start, "weight": weight}
        for place, (start, weight) in enumerate(blocks)
    ]
    rows.append({"bucket": "older", "from_open_time_ms": None, "weight": 0.8})
    console = Console(file=io.StringIO(), width=100)
    config = '{"model": {"explanation": {"method": "relevance"}}}'
    show(
        console,
        [
            attention_table(
                StoredDecision(
                    {"config": config},
                    {"rollout_entropy": 0.95, "confidence_entropy": 0.05},
                    (),
                    tuple(rows),
                ),
                0,
            )
        ],
    )
    assert isinstance(console.file, io.StringIO)
    older, first, second = [line for line in console.file.getvalue().splitlines() if "0." in line]
    assert older.split() == ["older", "0.8000"]
    assert first.count("█") == BAR_CELLS
    assert second.count("█") == BAR_CELLS // 3


def test_the_entropy_gates_worth_is_read_from_the_card_that_the_run_stored(tmp_path: Path) -> None:
    """The copy beside the database may be deleted; the figure is that of the shipped card."""
    sample = ROOT / "replay/samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
    database = tmp_path / "run.db"
    given = ["--data", str(sample), "--to", "2025-05-26T07:50", "--db", str(database)]
    assert invoke(["replay", *given, "--set", "gate.confidence_by=entropy"]) == 0
    shutil.rmtree(tmp_path / "run.db.checkpoints")
    silent = read_decision(database, explained_runs.run_id(database), 10)[0]
    with (ROOT / "storage/models/flash-1m/card.toml").open("rb") as file:
        surest = tomllib.load(file)["figures"]["gates"]["selective"]["entropy"]
    gained, error = 100 * surest["gained"][2], 100 * surest["error"][2]
    assert silent.entropy_worth == (
        "On untouched bars, by the model's card: the entropy gate did not beat a random gate on "
        f"the most confident tenth of bars: accuracy changed by {gained:+.1f} points "
        f"(± {error:.1f}) on {surest['days']} days."
    )
    document = explained_runs.told_of(database, silent)
    assert silent.entropy_worth in [getattr(part, "text", "") for part in document.parts]
    by_others = tuple(row for row in silent.gates if row["gate"] != "confidence_entropy")
    assert replace(silent, gates=by_others).entropy_worth == ""


def test_a_card_without_figures_says_that_the_entropy_gates_worth_is_not_known(
    tmp_path: Path,
) -> None:
    database = explained_runs.replayed(tmp_path, bars=30)
    silent = read_decision(database, explained_runs.run_id(database), 10)[0]
    assert any(row["gate"] == "confidence_entropy" for row in silent.gates)
    assert (
        silent.entropy_worth == "The model's card has no figure of what the entropy gate is worth."
    )


@pytest.mark.parametrize(
    ("gained", "days", "verb"), [(0.05, 40, "beat"), (0.05, 20, "did not"), (0.03, 40, "did not")]
)
def test_the_entropy_gate_beats_chance_by_two_errors_and_thirty_days(
    gained: float, days: int, verb: str
) -> None:
    surest = {"gained": [0.0, 0.0, gained, 0.0], "error": [0.0, 0.0, 0.02, 0.0], "days": days}
    gates = {"selective": {"entropy": surest}}
    sentence = entropy_sentence(gates)
    assert sentence.startswith(f"The entropy gate {verb}")
    assert entropy_sentence({"selective": {"margin": surest}}) == ""
