"""The page's files: small, with known origins, and allowed by the content policy."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import pytest

from tracepaper.replay import page
from tracepaper.replay.page import rollups

ASSETS: Final = Path(page.__file__).parent / "assets"
VENDOR: Final = ASSETS / "vendor"
OWN: Final = sorted(path for path in ASSETS.rglob("*.js") if path.parent != VENDOR)


def stated(text: str) -> dict[str, str]:
    """Return the files in the table with their hashes."""
    return dict(re.findall(r"^\| `(\S+)` \|.*\| `([0-9a-f]{64})` \|$", text, re.MULTILINE))


def hashes(folder: Path) -> dict[str, str]:
    """Return the scripts of a folder with their hashes."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")
    }


def test_other_peoples_code_is_what_third_party_says() -> None:
    text = (VENDOR / "THIRD_PARTY.md").read_text(encoding="utf-8")
    assert stated(text) == hashes(VENDOR) != {}
    licences = re.findall(r"`(LICENSE-\S+\.txt)`", text)
    assert len(licences) == 3
    assert all((VENDOR / name).is_file() for name in licences)


REFUSED: Final = {
    "markup as text": re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML"),
    "a style as text": re.compile(r'style="'),
    "code as text": re.compile(r"\beval\(|new Function\("),
    "another host": re.compile(r"(?:import|fetch\()[^\n]*https?://"),
    "a bare import": re.compile(r'from "(?!\.{1,2}/)'),
}


def refused(script: str) -> set[str]:
    """Return the parts of a script that the policy, or a file on disk, would not allow."""
    return {what for what, pattern in REFUSED.items() if pattern.search(script)}


@pytest.mark.parametrize("path", OWN, ids=lambda path: str(path.relative_to(ASSETS)))
def test_a_module_does_nothing_that_the_policy_refuses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not refused(text)
    assert text.startswith(("/**", "// ")), "a module says first what it is"
    for name in re.findall(r'from "(\.[^"]+)"', text):
        assert (path.parent / name).resolve().is_file()


def test_cells_that_the_chart_asks_for_are_those_that_the_server_makes() -> None:
    script = (ASSETS / "chart" / "frame.js").read_text(encoding="utf-8")
    [listed] = re.findall(r"MULTIPLES = \[([\d, ]+)\]", script)
    assert tuple(map(int, listed.split(","))) == rollups.MULTIPLES
