"""The version names the commit: of the checkout, or of what a wheel was built of."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from programs import ROOT

from tracepaper.daemon.session.run_row import code_version, is_this_code
from tracepaper.daemon.version import commit_of, version

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def written(root: Path, **files: str) -> Path:
    """Write *files* of git below *root*, with / for each double underscore."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    "files",
    [
        {"HEAD": COMMIT},
        {"HEAD": "ref: refs/heads/main", "refs__heads__main": COMMIT},
        {"HEAD": "ref: refs/heads/a", "packed-refs": f"# of git\n{COMMIT} refs/heads/a\n^{COMMIT}"},
    ],
    ids=["detached", "branch", "packed"],
)  # fmt: skip
def test_a_checkouts_commit_is_that_of_its_head(files: dict[str, str], tmp_path: Path) -> None:
    written(tmp_path / ".git", **files)
    assert commit_of(tmp_path) == COMMIT[:9]
    assert version(tmp_path) == f"{metadata.version('tracepaper').partition('+')[0]}+g{COMMIT[:9]}"


def test_a_second_worktree_has_its_own_head(tmp_path: Path) -> None:
    written(
        tmp_path / "main" / ".git",
        refs__heads__side=COMMIT,
        worktrees__side__HEAD="ref: refs/heads/side",
        worktrees__side__commondir="../..",
    )
    written(tmp_path / "side", **{".git": f"gitdir: {tmp_path}/main/.git/worktrees/side"})
    assert commit_of(tmp_path / "side") == COMMIT[:9]


def test_what_is_no_checkout_has_the_version_that_was_installed(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""
    assert version(tmp_path) == metadata.version("tracepaper")
    written(tmp_path / ".git", HEAD="ref: refs/heads/none")
    assert commit_of(tmp_path) == ""


def test_codes_are_the_same_by_their_sources_at_whichever_commit() -> None:
    number, _, local = code_version().partition("+")
    commit, _, sources = local.partition(".")
    assert number in version()
    assert commit in version()
    assert is_this_code(f"{number}+g{COMMIT[:9]}.{sources}")
    assert not is_this_code(f"{number}+{commit}.{'0' * 12}")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_git_says_the_same_of_this_checkout() -> None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert commit_of(ROOT) == done.stdout[:9]
