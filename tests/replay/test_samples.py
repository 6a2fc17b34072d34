"""`tracepaper data samples` copies what the documentation names, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

from command_line import Cli

from tracepaper.replay.samples import DEMO_CANDLES, bundled


def test_every_file_is_copied_with_its_source_and_again_without_complaint(
    here: Path, cli: Cli
) -> None:
    for _ in range(2):
        assert cli.out("data", "samples") == (
            f"samples holds {len(bundled())} files; samples/SOURCES.md names their sources.\n"
        )
    copy = here / "samples" / DEMO_CANDLES.name
    assert copy.read_bytes() == DEMO_CANDLES.read_bytes()
    assert (here / "samples" / "SOURCES.md").is_file()


def test_a_file_that_is_another_is_kept_and_nothing_is_copied(tmp_path: Path, cli: Cli) -> None:
    mine = tmp_path / "grid.toml"
    mine.write_text("mine", encoding="utf-8")
    assert f"{mine} is not the bundled file" in cli.err("data", "samples", tmp_path, code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]
    document = cli.json("data", "samples", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(document["files"])
