"""The detection budget: each mutation is found where it belongs, and what survives is said."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import campaign_changes
import campaign_mutants
import deleted_branches
import pytest
from campaign_mutants import Group, Mutation, MutationLost
from waiting import deadline_s

MUTATIONS = [
    *(mutation for group in campaign_mutants.groups().values() for mutation in group.mutations),
    *(mutation for mutation, _ in campaign_changes.changes()),
]

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
import os

from tracepaper.daemon.purse import Purse, spent


def test_pay():
    purse = Purse()
    purse.spent = 12
    assert purse.pay(3) == 0


def test_spent():
    if spent(4) > 10:
        os._exit(0)
    assert spent(4) == 6
"""
PAYS = Mutation("purse", "Purse.pay", "min(amount, self.left())", "amount")
LIVES = Mutation("purse", "left", "self.spent -= 1", "self.spent -= 2")
HANGS = LIVES._replace(new="pass")
BREAKS = Mutation("purse", "spent", "10 - purse", "9 - purse")
ENDS = BREAKS._replace(new="10 + purse")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_found_once_and_is_another_program(mutation: Mutation) -> None:
    mutant = campaign_mutants.find(mutation)
    source = campaign_mutants.sources(campaign_mutants.ROOT)[mutant.path]
    longer = len(mutant.source) - len(source)
    before, after = (
        {
            ast.dump(ast.parse(dedent(text[begin : end + more])))
            for name, begin, end in campaign_mutants.definitions(source)
            if name == mutant.definition
        }
        for text, more in ((source, 0), (mutant.source, longer))
    )
    assert before.isdisjoint(after)


def test_the_test_modules_of_every_group_are_there() -> None:
    modules = {name for group in campaign_mutants.groups().values() for name in group.modules}
    assert {name for name in modules if not (campaign_mutants.ROOT / name).is_file()} == set()


def test_no_mutation_stands_twice() -> None:
    assert len(set(MUTATIONS)) == len(MUTATIONS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tracepaper"
    files = {
        "__init__.py": "",
        "daemon/__init__.py": "",
        "daemon/purse.py": PRODUCT,
        "tests/test_purse.py": TESTS,
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--import-mode=importlib"\n',
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(content)
    return root


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
        f"{lost} (purse) is found {times}: rewrite or remove it in tests/campaigns/mutations.toml."
    )


def judged(root: Path, *mutations: Mutation, tests: str = TESTS) -> tuple[int, str]:
    """Judge *mutations* of the planted program; return the exit code and what was printed."""
    rows = ", ".join(str([str(part) for part in mutation[1:]]) for mutation in mutations)
    table = f'[purse]\ntests = ["test_purse"]\nmutations = [{rows}]\n'
    (root / "tests" / "campaigns").mkdir(exist_ok=True)
    (root / "tests" / "campaigns" / "mutations.toml").write_text(table)
    (root / "tests" / "test_purse.py").write_text(tests)
    done = subprocess.run(
        [
            sys.executable,
            campaign_mutants.__file__,
            "--root",
            root,
            "--least-limit",
            str(deadline_s(2)),
        ],
        env={**os.environ, "PYTHONPATH": str(root.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_survivors_are_named_and_a_new_one_fails(root: Path) -> None:
    code, output = judged(root, PAYS, LIVES, BREAKS, HANGS, ENDS)
    assert code == 1, output
    assert f"killed   purse  {PAYS}  tests/test_purse.py::test_pay" in output
    assert f"killed   purse  {BREAKS}  tests/test_purse.py::test_spent" in output
    assert f"killed   purse  {HANGS}  a test did not end" in output
    assert f"killed   purse  {ENDS}  a test ended the process" in output
    assert f"survives: {LIVES}" in output
    assert "purse           4 of 5 killed" in output
    assert (root / "daemon" / "purse.py").read_text() == PRODUCT


def test_what_fails_without_a_mutation_is_named(root: Path) -> None:
    code, output = judged(root, PAYS, tests=f"{TESTS}    assert False\n")
    fails = "tests/test_purse.py::test_spent fails without any mutation and judges none"
    assert (code, fails in output) == (0, True), output
    code, output = judged(root, PAYS, tests="import nothing_at_all")
    assert (code, "tests/test_purse.py cannot be collected; mend it first" in output) == (1, True)


def test_a_part_of_a_name_chooses_mutations() -> None:
    table = {"purse": Group((), (PAYS, LIVES)), "rest": Group((), (BREAKS,))}
    assert campaign_mutants.wanted(table, "") == table
    assert campaign_mutants.wanted(table, "rest") == {"rest": table["rest"]}
    assert campaign_mutants.wanted(table, "Purse.pay") == {"purse": Group((), (PAYS,))}
    assert campaign_mutants.wanted(table, "nothing") == {}


BRANCHES = """
def name(number):
    if number == 1:
        return "if"
    elif number == 2:
        return "elif"
    while number == 3:
        return "while"
    match number:
        case 4:
            return "case"
        case int() if number == 5:
            return "guard"
        case _:
            return "expression" if number == 6 else "rest"
"""


def test_a_deleted_branch_is_never_taken_and_no_other_is_missed() -> None:
    def names(source: str) -> list[str]:
        defined: dict[str, Callable[[int], str]] = {}
        exec(source, defined)
        return [defined["name"](number) for number in range(1, 8)]

    whole = names(BRANCHES)
    assert whole == ["if", "elif", "while", "case", "guard", "expression", "rest"]
    changes = deleted_branches.deleted({Path("daemon/a.py"): BRANCHES})
    lost = [
        [
            before
            for before, after in zip(whole, names(change.source), strict=True)
            if before != after
        ]
        for change in changes
    ]
    assert lost == [[name] for name in whole[:-1]]
