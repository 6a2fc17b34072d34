"""What a test costs is known: one that is dear and unknown fails, and a key is no sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from costs import Known, key_of, merged
from programs import ROOT

PLANTED = """
import time
import pytest

def spin():
    end = time.process_time() + .2
    while time.process_time() < end:
        pass

@pytest.fixture(scope="module")
def shared():
    spin()

def test_dear():
    spin()

def test_dear_once(once=[]):
    if not once:
        once.append(1)
        spin()

def test_cheap_by_what_it_shares(shared):
    pass

def test_also(shared):
    pass
"""


def test_a_dear_test_without_a_row_fails_and_what_is_made_once_counts_for_none(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    command = "-m pytest -q -p costs --unknown-costs .15 -p no:cacheprovider --rootdir . ."
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "tests" / "support"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "1 failed, 4 passed" in done.stdout) == (1, True), done.stdout
    assert "test_planted.py::test_dear takes " in done.stdout
    assert "run `make costs ONLY=test_planted.py`" in done.stdout


@pytest.mark.parametrize("says", ["a whole sentence, of which the table has the place", "word"])
def test_a_key_is_a_short_id_or_a_place(says: str, request: pytest.FixtureRequest) -> None:
    shown = "word" if says == "word" else "#0"
    assert key_of(request.node) == (
        f"tests/repository/test_costs.py::test_a_key_is_a_short_id_or_a_place[{shown}]"
    )


def test_an_unknown_id_costs_as_the_dearest_of_its_function() -> None:
    table = Known(["0.10\ta.py::test_a[one]", "3.00\ta.py::test_a[two]\treal_time"])
    ids = ("one", "two", "new")
    assert [table.cost_s(f"a.py::test_a[{name}]") for name in ids] == [0.1, 3.0, 3.0]
    assert [table.mark(f"a.py::test_a[{name}]") for name in ids] == ["", "real_time", "real_time"]
    assert (table.cost_s("a.py::test_b"), table.mark("a.py::test_b")) == (0.0, "")


def test_a_part_that_is_measured_anew_replaces_its_rows_alone() -> None:
    old = ["1.00\tb/test_b.py::test_gone", "2.00\ta/test_a.py::test_a"]
    measured = [
        *("0.10\tb/test_b.py::test_b[one]", "0.30\tb/test_b.py::test_b[two]"),
        "0.20\tb/test_b.py::test_cheap",
    ]
    assert merged(old, measured, ["b"]) == [old[1], *measured[:2]]
    assert merged(old, measured, []) == measured[:2]
