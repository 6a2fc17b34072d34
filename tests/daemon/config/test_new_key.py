"""A key that is one field of a section is found wherever keys are: nothing else names it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT, environment
from waiting import deadline_s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("new_key")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    """Return what every place says of two new keys, by its name."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "new_key_program.py"), str(folder)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_s(120),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_is_in_the_documented_file_with_its_words_limits_and_default(
    said: dict[str, Any], folder: Path
) -> None:
    assert said["written"][0] == 0
    text = (folder / "written.toml").read_text(encoding="utf-8")
    assert "# Bars of patience. From 1 to 9.\npatience = 7\n" in text
    assert '# Colour of an error.\n# colour = "blue"\n' in text
    assert text.index("[execution]") < text.index("patience = 7") < text.index("[risk]")


def test_the_file_and_the_environment_set_it(said: dict[str, Any]) -> None:
    values = {name: said[name]["execution"]["patience"] for name in ("default", "file")}
    assert values == {"default": 7, "file": 3}
    assert said["environment"]["execution"]["patience"] == 8
    assert (said["default"]["log"]["colour"], said["other"]["log"]["colour"]) == (None, "red")


def test_it_decides_a_run_where_its_section_does(said: dict[str, Any]) -> None:
    hashes = {name: said[name]["config_sha256"] for name in ("default", "file", "other")}
    assert hashes["file"] != hashes["default"] == hashes["other"]


def test_a_run_keeps_it(said: dict[str, Any]) -> None:
    assert said["kept"]["execution"]["patience"] == 5


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("outside", "[execution] patience = 12 cannot be used; write a whole number from 1 to 9."),
        ("misspelt", "[execution] has no key 'patienc'; the nearest is 'patience'; correct it."),
        ("misplaced", "[log] has no key 'patience', but [execution] has; correct it."),
    ],
)
def test_the_check_refuses_it_in_a_sentence(said: dict[str, Any], name: str, sentence: str) -> None:
    code, text = said[name]
    assert (code, sentence in text) == (2, True), text
