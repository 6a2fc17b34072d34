"""The campaign of the image finds what is planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import campaign_image
import campaign_image_inside
import pytest
from campaign_image import BARE, USUAL, faults

GOOD: dict[str, Any] = {
    "user": 10001,
    "folder": "/data",
    "failed": [],
    "attention": "compiled loops: native_avx512",
    "cuda": "None",
    "compilers": [],
    "writable": [],
    "healthy before": False,
    "healthy": True,
    "ended with": 0,
    "verified": "30 of 30 decisions follow from the record",
}


def test_an_image_as_it_must_be_has_no_faults() -> None:
    log = f'#9 [build 3/9] RUN x || echo "{BARE}"\n#9 0.2 built\n'
    assert faults(GOOD, log, is_compiled=True, has_index=True) == []
    bare = GOOD | {"attention": "compiled loops: none", "cuda": "13.0"}
    printed = f"{log}#9 0.3 {BARE} of attention\nno answer: {USUAL}\n"
    assert faults(bare, printed, is_compiled=False, has_index=False) == []


@pytest.mark.parametrize(
    ("planted", "printed", "fault"),
    [
        ({"user": 0}, "", "it runs as 10001"),
        ({"folder": "/"}, "", "it runs in /data"),
        ({"failed": ["numpy is missing"]}, "", "doctor finds no fault"),
        ({"attention": "compiled loops: none"}, "", "doctor names its loops"),
        ({}, f"{BARE} of attention\n", "one line says that it has no loops"),
        ({"cuda": "13.0"}, "", "PyTorch is for processors"),
        ({}, USUAL, "one line says that no index answered"),
        ({"compilers": ["gcc"]}, "", "it has no compiler"),
        ({"writable": ["/opt/tracepaper"]}, "", "its user may write in /data alone"),
        ({"healthy": False}, "", "it is healthy once it runs"),
        ({"healthy before": True}, "", "it is healthy once it runs"),
        ({"ended with": 1}, "", "it ends in order"),
        ({"verified": "1 of 30 decisions differs"}, "", "its decisions follow from its record"),
    ],
)
def test_each_planted_fault_is_named(planted: dict[str, Any], printed: str, fault: str) -> None:
    assert faults(GOOD | planted, printed, is_compiled=True, has_index=True) == [fault]


def test_what_is_planted_in_the_dockerfile_stands_in_it() -> None:
    text = campaign_image.DOCKERFILE.read_text(encoding="utf-8")
    for was, becomes in campaign_image.VARIANTS.values():
        assert text.count(was) == 1 or not becomes
    entry, health = campaign_image.commands(campaign_image.DOCKERFILE)
    assert json.loads(entry) == ["tracepaper", "run"]
    assert json.loads(health) == ["tracepaper", "status", "--ready"]


def test_what_the_user_may_write_is_found(tmp_path: Path) -> None:
    for name, mode in (("own", 0o644), ("read", 0o444), ("shared", 0o1777)):
        (tmp_path / name).mkdir() if name == "shared" else (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("own")
    assert campaign_image_inside.writable(tmp_path) == [str(tmp_path / "own")]
