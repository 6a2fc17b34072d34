"""Free memory: what the machine says, what a container leaves of it, and silence elsewhere."""

from __future__ import annotations

from pathlib import Path

from tracepaper.daemon.free_memory import free_bytes

MEMINFO = "MemTotal:       16000 kB\nMemFree:  10 kB\nMemAvailable:   8000 kB\nHugePages_Total: 0\n"


def system(root: Path, *, limit: str | None = None) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(MEMINFO)
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    if limit is not None:
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("900000\n")
        (group / "memory.stat").write_text("anon 600000\ninactive_file 300000\n")
    return root


def test_the_machine_tells_what_is_available(tmp_path: Path) -> None:
    assert free_bytes(system(tmp_path)) == 8_000 * 1_024


def test_a_container_leaves_its_limit_less_what_it_cannot_drop(tmp_path: Path) -> None:
    assert free_bytes(system(tmp_path, limit="1000000")) == 400_000


def test_a_container_without_a_limit_has_what_the_machine_has(tmp_path: Path) -> None:
    assert free_bytes(system(tmp_path, limit="max")) == 8_000 * 1_024


def test_a_container_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    assert free_bytes(system(tmp_path, limit="500000")) == 0


def test_a_system_that_does_not_tell_is_not_guessed_at(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None
