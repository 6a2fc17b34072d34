"""The glossary has every declared name, each with a meaning of its own, and no second word."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict

import glossary
import pytest
from programs import ROOT

from tracepaper.daemon.config.loading import example
from tracepaper.storage.database.views import VIEWS
from tracepaper.strategies.gates.evaluator import threshold_key
from tracepaper.strategies.gates.gate import GATES

PAGE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))


def test_every_key_of_the_documented_configuration_is_named() -> None:
    documented = re.sub(r"^# (\w+ = )", r"\1", example(), flags=re.MULTILINE)
    tables = tomllib.loads(documented)
    keys = {f"{section}.{key}" for section, table in tables.items() for key in table}
    assert keys
    assert keys <= NAMED


def test_every_column_of_the_views_is_named_or_derived_by_the_rule() -> None:
    for view in VIEWS:
        for name in (column.name for column in view.columns):
            stem = name.removesuffix("_iso").removesuffix("_text")
            assert NAMED & {name, stem, f"{stem}_ms"}, f"{view.name}.{name}"


def test_every_gate_label_and_key_of_the_status_is_named() -> None:
    assert {*GATES, *glossary.labels(), *glossary.status_keys()} <= NAMED
    assert {"realized_pnl", "mean_day", "without_fills", "warm_at_ms"} <= NAMED


def test_a_gate_that_a_setting_chooses_is_named_by_its_key_and_that_setting() -> None:
    chosen = {gate.name: gate for gate in GATES.values() if gate.chosen_by}
    assert chosen
    for name, gate in chosen.items():
        assert name == f"{threshold_key(gate).removeprefix('gate.')}_{gate.chosen_by}"


def test_what_is_explained_is_still_declared() -> None:
    assert set(glossary.LABELS) <= {*glossary.labels(), *glossary.status_keys()}


def test_no_two_names_have_one_meaning() -> None:
    names = defaultdict(set)
    for line in PAGE.splitlines():
        if line.startswith("| ") and " meaning |" not in line:
            name, *_, meaning = line.removeprefix("| ").removesuffix(" |").split(" | ")
            names[meaning].add(name.strip("`").rpartition(".")[2])
    assert {meaning: same for meaning, same in names.items() if len(same) > 1} == {}


@pytest.mark.parametrize("pattern", glossary.SYNONYMS)
def test_one_thing_has_one_word(pattern: str) -> None:
    prose = re.sub(r"`[^`]*\.\w+`", "", PAGE)  # without the names of sections
    used = re.findall(rf"(?<![\w.-])(?:{pattern})(?![\w-])", prose, re.IGNORECASE)
    assert used == [], f"write instead: {glossary.SYNONYMS[pattern]}"
