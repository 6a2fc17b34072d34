"""What passed is written down by part and commit, told by doctor, and named by the figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import campaign_all
import pytest

HEAD = "# The last commit that each part of `make campaign` passed on; the command writes it.\n"


def test_each_part_is_a_program_that_exists() -> None:
    for command in campaign_all.PARTS.values():
        assert command[0] in {"promtool", sys.executable}
        assert all((campaign_all.ROOT / word).exists() for word in command if "/campaigns/" in word)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository of its own with one part that passes and one that fails."""
    (tmp_path / "passed.toml").write_text(HEAD)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(campaign_all, "ROOT", tmp_path)
    monkeypatch.setattr(campaign_all, "PASSED", tmp_path / "passed.toml")
    good = (sys.executable, "-c", "open('ran', 'a').write('x'); print('7 passed')")
    monkeypatch.setattr(campaign_all, "PARTS", {"good": good, "bad": (sys.executable, "-c", "1/0")})
    (tmp_path / ".gitignore").write_text("ran\n.gitignore\n")
    return tmp_path


def test_a_part_is_kept_beside_the_others(checkout: Path) -> None:
    path = checkout / "passed.toml"
    campaign_all.keep("live", "aaaaaaaaa", '2 passed, "0" failed \\')
    campaign_all.keep("disk", "bbbbbbbbb", "100 passed")
    campaign_all.keep("disk", "ccccccccc", "101 passed")
    document = campaign_all.passed()
    assert {name: row["commit"] for name, row in document.items()} == {
        "disk": "ccccccccc",
        "live": "aaaaaaaaa",
    }
    assert document["live"]["said"] == '2 passed, "0" failed \\'
    assert path.read_text().startswith(HEAD)


def test_what_passed_on_this_commit_is_not_run_again_and_what_failed_is_not_kept(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["campaign_all.py"])
    assert (campaign_all.main(), campaign_all.main()) == (1, 1)
    assert (checkout / "ran").read_text() == "x"
    assert {name: row["said"] for name, row in campaign_all.passed().items()} == {
        "good": "7 passed"
    }
    monkeypatch.setattr(sys, "argv", ["campaign_all.py", "--only", "go"])
    assert campaign_all.main() == 0
