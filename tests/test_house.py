"""The house itself: packages and folders agree, and every module says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("daemon", "replay", "storage", "strategies")


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def project() -> dict[str, object]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert isinstance(document["tool"], dict)
    return document


def test_every_folder_with_modules_is_a_listed_package() -> None:
    folders = {path.parent.relative_to(ROOT) for path in sources()}
    found = {"tracepaper." + ".".join(folder.parts) for folder in folders}
    listed = project()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    assert sorted(found) == sorted(listed)
    assert listed == sorted(listed)


def test_every_folder_with_modules_has_an_init() -> None:
    missing = {path.parent for path in sources() if not (path.parent / "__init__.py").is_file()}
    assert missing == set()


def test_every_module_says_in_its_first_line_what_it_is() -> None:
    silent = [
        path
        for path in sources()
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
    ]
    assert silent == []


def test_every_room_ships_its_types() -> None:
    assert all((ROOT / room / "py.typed").is_file() for room in ROOMS)


def test_every_command_of_the_entry_points_can_be_imported() -> None:
    commands = project()["project"]["entry-points"]["tracepaper.commands"]  # type: ignore[index]
    for value in commands.values():
        module, _, name = value.partition(":")
        path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        names |= {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert name in names


def test_the_import_contracts_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_clock_reads_the_machines_time() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr)
        in {("time", "time"), ("time", "time_ns"), ("time", "monotonic"), ("datetime", "now")}
    }
    assert readers == {"daemon/clock.py"}
