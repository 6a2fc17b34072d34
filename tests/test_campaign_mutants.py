"""The detection budget: each mutation is found where it belongs, and what survives is said."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import campaign_mutants
import pytest
from campaign_mutants import Group, Mutation, MutationLost

SURVIVORS_MOST = 0
"""Mutations that no test finds yet; the number only falls."""
MUTATIONS = [one for group in campaign_mutants.groups().values() for one in group.mutations]

PRODUCT = """
class Purse:
    def pay(self, amount):
        return min(
            amount,
            self.left(),
        )

    def left(self):
        while self.spent > 10:
            self.spent -= 1
        return 10 - self.spent


def spent(purse):
    return 10 - purse
"""
TESTS = """
from tracepaper.daemon.purse import Purse, spent


def test_pay():
    purse = Purse()
    purse.spent = 12
    assert purse.pay(3) == 0


def test_spent():
    assert spent(4) == 6
"""
PAYS = Mutation("purse", "Purse.pay", "min(amount, self.left())", "amount")
HANGS = Mutation("purse", "left", "self.spent -= 1", "pass")
LIVES = Mutation("purse", "left", "self.spent -= 1", "self.spent -= 2")
BREAKS = Mutation("purse", "spent", "10 - purse", "10 + purse")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_found_once_and_is_another_program(mutation: Mutation) -> None:
    mutant = campaign_mutants.find(mutation)
    source = campaign_mutants.sources(campaign_mutants.ROOT)[mutant.path]
    assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(source))


def test_the_test_modules_of_every_group_are_there() -> None:
    there = {path.stem for path in (campaign_mutants.ROOT / "tests").rglob("test_*.py")}
    named = {name for group in campaign_mutants.groups().values() for name in group.tests}
    assert named - there == set()


def test_the_number_of_survivors_does_not_grow() -> None:
    assert len([one for one in MUTATIONS if one.survives]) <= SURVIVORS_MOST
    assert len(set(MUTATIONS)) == len(MUTATIONS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "daemon/__init__.py": "",
        "daemon/purse.py": PRODUCT,
        "tests/test_purse.py": TESTS,
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\n',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_a_mutation_is_found_however_its_lines_are_broken(root: Path) -> None:
    mutant = campaign_mutants.find(PAYS, root)
    assert (mutant.path, mutant.definition) == (Path("daemon/purse.py"), "Purse.pay")
    assert "return amount\n" in mutant.source


@pytest.mark.parametrize(
    ("lost", "times"),
    [
        (PAYS._replace(definition="Purse.left"), "0 times (nowhere)"),
        (PAYS._replace(definition="Purse.sell"), "0 times (nowhere)"),
        (PAYS._replace(old="moun"), "0 times (nowhere)"),
        (LIVES._replace(old="self.spent"), "3 times (daemon/purse.py)"),
    ],
)
def test_a_mutation_that_is_lost_or_ambiguous_is_named(
    lost: Mutation, times: str, root: Path
) -> None:
    with pytest.raises(MutationLost) as raised:
        campaign_mutants.find(lost, root)
    assert str(raised.value) == (
        f"{lost} (purse) is found {times}: rewrite or remove it in mutations.toml."
    )


def judged(root: Path, *mutations: Mutation) -> int:
    return campaign_mutants.run({"purse": Group(("test_purse",), mutations)}, 1, root)


def test_survivors_are_named_and_one_that_is_new_fails(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judged(root, PAYS, LIVES, BREAKS) == 1
    said = capsys.readouterr().out
    assert f"killed  purse  {PAYS}  tests/test_purse.py::test_pay" in said
    assert f"killed  purse  {BREAKS}  tests/test_purse.py::test_spent" in said
    assert f"survives: purse: {LIVES}  NEW" in said
    assert "purse           2 of 3 killed" in said
    known = LIVES._replace(survives="it is always even")
    assert judged(root, known) == 0
    assert f"survives: purse: {LIVES}  it is always even" in capsys.readouterr().out
    assert judged(root, BREAKS._replace(survives="it does not")) == 1
    assert "is found now" in capsys.readouterr().out


def test_a_test_that_does_not_end_finds_its_mutation(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_mutants, "LEAST_LIMIT_S", 5)
    assert judged(root, HANGS) == 0
    assert f"killed  purse  {HANGS}  no end within 5 s" in capsys.readouterr().out


def test_tests_that_fail_without_a_mutation_are_said(root: Path) -> None:
    (root / "tests" / "test_purse.py").write_text("def test_wrong():\n    assert False\n")
    with pytest.raises(MutationLost, match="Tests fail without any mutation; mend them first"):
        judged(root, PAYS)


def test_a_part_of_a_name_chooses_mutations() -> None:
    table = {
        "purse": Group((), (PAYS, LIVES)),
        "rest": Group((), (BREAKS,)),
    }
    assert campaign_mutants.wanted(table, "") == table
    assert campaign_mutants.wanted(table, "rest") == {"rest": table["rest"]}
    assert campaign_mutants.wanted(table, "Purse.pay") == {"purse": Group((), (PAYS,))}
    assert campaign_mutants.wanted(table, "nothing") == {}
