"""A gate that is declared once is found wherever gates are: nothing else names it."""

from __future__ import annotations

import json

import pytest
from pages import said_in
from programs import texts_of_program

NEW = ("calm", "certain")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what every place says, by its name, after a replay with two new gates."""
    folder = tmp_path_factory.mktemp("new_gate")
    texts = texts_of_program("new_gate_program.py", folder)
    written = (folder / "written.toml").read_text(encoding="utf-8")
    return {**texts, "written": written, "page": said_in(folder / "page.html")}


def test_its_key_is_in_the_documented_configuration(outputs: dict[str, str]) -> None:
    text = outputs["written"]
    assert '# At most so many halves. Above 0 to 92233720368.\ncalm_halves = "3"' in text
    assert '# At least so much certainty.\ncertain = "0.4"' in text
    assert text.index("[gate]") < text.index("calm_halves") < text.index("[regime]")


def test_its_measures_are_in_the_record_and_its_view(outputs: dict[str, str]) -> None:
    rows = [line.split("\t") for line in outputs["gates"].splitlines()]
    at = {name: place for place, name in enumerate(rows[0])}
    for name, threshold in (("calm", "3.0"), ("certain", "0.4")):
        rows_of_gate = [row for row in rows[1:] if row[at["gate"]] == name]
        assert {row[at["threshold"]] for row in rows_of_gate} == {threshold}
        assert {row[at["passed"]] for row in rows_of_gate} == {"0", "1"}
        assert any(float(row[at["measure"]] or 0) > 0 for row in rows_of_gate)


def test_the_record_holds_it_to_the_chain_and_to_a_replay(outputs: dict[str, str]) -> None:
    assert " follow from the record " in outputs["verify"]
    assert " holds: " in outputs["chain"]


def test_explain_shows_it_with_its_unit(outputs: dict[str, str]) -> None:
    for name, unit in (("calm", "usual half ranges"), ("certain", "of certainty")):
        (line,) = (line for line in outputs["explain"].splitlines() if line.split()[:1] == [name])
        assert unit in line
    gates = {row["gate"]: row for row in json.loads(outputs["document"])["gates"]}
    assert gates["calm"]["unit"] == "usual half ranges"
    assert gates["certain"]["meaning"] == "Probability of the likeliest class"
    assert (gates["certain"]["margin"] >= 0) is bool(gates["certain"]["passed"])


def test_the_report_counts_its_refusals(outputs: dict[str, str]) -> None:
    refused = {row["gate"]: row["decisions"] for row in json.loads(outputs["figures"])["refusals"]}
    assert refused.keys() >= set(NEW)
    lines = [line.split()[:2] for line in outputs["report"].splitlines()]
    for name in NEW:
        assert [name, str(refused[name])] in lines
        assert name in outputs["page"].splitlines()


def test_the_status_shows_it(outputs: dict[str, str]) -> None:
    assert all(f"✗ {name}  " in outputs["screen"] for name in NEW)
