"""The wheel holds all that the program needs, and runs where nothing of the checkout is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from programs import ROOT, Program
from wheels import InstalledWheel, build, build_of, built, installed_alone, tracked

import tracepaper
from tracepaper.strategies.attention import compiled

pytestmark = pytest.mark.slow

SHIPPED: Final = {
    *(".py", ".c", ".gz", ".csv", ".toml", ".txt", ".typed", ".safetensors", ".md"),
    *(".css", ".html", ".js"),
}
"""Kinds of files that belong into the wheel; what is compiled or cached does not."""


@pytest.fixture(scope="module")
def plain(installed: InstalledWheel, tmp_path_factory: pytest.TempPathFactory) -> InstalledWheel:
    """Return the wheel installed without any extra."""
    return installed_alone(installed.wheel, tmp_path_factory.mktemp("plain"))


def test_the_wheel_holds_every_file_of_the_packages(installed: InstalledWheel) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for name in tracked() if Path(name).suffix in SHIPPED}
    assert wanted - held == set()
    assert {name for name in held if name.endswith(".py")} - tracked() == set()
    for needed in (
        "tracepaper/models.py",
        "tracepaper/storage/models/flash-1m/weights.safetensors",
        "tracepaper/daemon/bybit/instruments_linear.json.gz",
        "tracepaper/py.typed",
    ):
        assert needed in held


def test_a_wheel_is_of_this_platform_only_where_it_holds_compiled_loops(
    installed: InstalledWheel, tmp_path: Path
) -> None:
    loops = {f"tracepaper/strategies/attention/{compiled.file_of(name)}" for name in compiled.NAMES}
    for wheel, compiler in (
        (installed.wheel, shutil.which("gcc")),
        (built(tmp_path, "/bin/false"), None),
    ):
        implementation, abi, platform_tag = wheel.stem.split("-")[2:]
        with zipfile.ZipFile(wheel) as archive:
            held = loops.intersection(archive.namelist())
        assert (implementation, abi) == ("py3", "none")
        assert held == (set() if platform_tag == "any" else loops)
        if compiler is None:
            assert platform_tag == "any"


def test_builds_in_other_folders_at_other_times_are_equal_byte_by_byte(
    installed: InstalledWheel, tmp_path: Path
) -> None:
    """By another user, at another time, and the wheel once from the source distribution.

    That is no checkout, and nothing but itself names its commit.
    """
    places = (tmp_path / "here", tmp_path / "elsewhere" / "deeper")
    build(places[0], "--sdist", extra={"SOURCE_DATE_EPOCH": "1500000000"})
    build(places[1], "--sdist", extra={"TZ": "Asia/Tokyo"}, umask=0o077)
    archives = [next(place.glob("*.tar.gz")) for place in places]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    build_of(source, tmp_path, "--wheel", extra={"TZ": "Asia/Tokyo"}, umask=0o077)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == installed.wheel.name
    assert wheel.read_bytes() == installed.wheel.read_bytes()


def test_a_wheel_carries_its_commit_and_a_build_that_knows_none_says_so(
    installed: InstalledWheel, tmp_path: Path
) -> None:
    shown = installed.run("--version").stdout.split()[1]
    assert shown == tracepaper.__version__
    assert installed.wheel.name.split("-")[1] == shown
    assert re.fullmatch(r"[\d.]+\+g[0-9a-f]{9}", shown)
    needed = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "daemon/version.py")
    for name in (*needed, "strategies/attention/native.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=tmp_path,
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{shown.partition('+')[0]}+unknown"
    assert "this is no git checkout; set SOURCE_COMMIT to name it." in done.stderr


def test_the_bill_of_materials_names_the_pinned_dependencies_and_the_vendored_code(
    installed: InstalledWheel,
) -> None:
    with zipfile.ZipFile(installed.wheel) as archive:
        (name,) = (name for name in archive.namelist() if "dist-info/sboms/" in name)
        bill = json.loads(archive.read(name))
        hashes = {
            file: hashlib.sha256(archive.read(f"tracepaper/{file}")).hexdigest()
            for each in bill["components"]
            if "hashes" in each and (file := each["description"].partition(":")[0])
        }
    assert name == f"tracepaper-{tracepaper.__version__}.dist-info/sboms/tracepaper.cdx.json"
    assert set(hashes.values()) == {
        each["hashes"][0]["content"] for each in bill["components"] if "hashes" in each
    }
    scopes: dict[str, set[str]] = {"required": set(), "optional": set(), "vendored": set()}
    for each in bill["components"]:
        scopes[each.get("scope", "vendored")].add(each["name"])
        if "scope" in each:
            assert each["version"] == metadata.version(each["name"]).partition("+")[0]
    assert scopes["vendored"] == {"htm", "lightweight-charts"}
    inner = [each["name"] for held in bill["components"] for each in held.get("components", ())]
    assert inner == ["preact"]
    direct: dict[bool, set[str]] = {False: set(), True: set()}
    for requirement in map(Requirement, metadata.requires("tracepaper") or ()):
        is_extra = "extra" in str(requirement.marker)
        direct[is_extra].add(re.sub(r"[-_.]+", "-", requirement.name).lower())
    assert scopes["required"] == direct[False]
    assert scopes["optional"] <= direct[True] - direct[False]
    assert {"polars", "ray", "ta-lib"} <= scopes["optional"]


def test_no_file_of_the_packages_is_of_a_kind_that_is_not_shipped() -> None:
    assert {name for name in tracked() if Path(name).suffix not in SHIPPED} == set()


def test_the_installed_program_is_the_wheels_and_not_the_checkouts(
    installed: InstalledWheel,
) -> None:
    where = "import tracepaper.daemon.cli as cli; print(cli.__file__)"
    done = subprocess.run(
        [str(installed.python), "-c", where],
        cwd=installed.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(installed.python.parent.parent))


def test_the_installed_program_helps_and_examines_itself(installed: InstalledWheel) -> None:
    helped = installed.run("--help")
    assert (helped.returncode, "replay" in helped.stdout) == (0, True)
    examined = installed.run("doctor", "--json")
    assert examined.returncode == 0, examined.stdout + examined.stderr
    findings = {item["check"]: item for item in json.loads(examined.stdout)["findings"]}
    assert findings["checkpoint"]["verdict"] == "ok"


def test_without_extras_it_trades_explains_and_verifies_the_samples(plain: InstalledWheel) -> None:
    copied = plain.run("data", "samples")
    assert (copied.returncode, copied.stderr) == (0, "")
    options = ["--from", "2025-06-03T00:00", "--to", "2025-06-03T00:50", "--db", "run.db", "--json"]
    candles = "samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
    replayed = plain.run("replay", "--data", candles, *options)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["decisions"] == 50
    for command in ("audit verify last", "verify last", "explain last", "report last"):
        done = plain.run(*command.split(), "--db", "run.db")
        assert (done.returncode, done.stderr) == (0, ""), command
    for command in ("explain last --page d.html", "report last --html r.html"):
        done = plain.run(*command.split(), "--db", "run.db")
        assert (done.returncode, done.stderr.partition("The page is")[0]) == (0, ""), command


@pytest.mark.long
def test_without_extras_the_demo_proposes_what_runs(plain: InstalledWheel) -> None:
    demo = plain.run("demo", "--days", "0.5", "--seconds", "5", "--no-incidents", "--db", "d.db")
    assert demo.returncode == 0, demo.stderr
    following = [line.partition(": ") for line in demo.stdout.splitlines()]
    proposed = [text for head, _, text in following if head in {"What to open", "What to type"}]
    assert "identical" in demo.stdout.partition("What it proved")[2]
    assert [line.split()[1] for line in proposed] == ["ui", "explain"]
    page, *others = (shlex.split(line)[1:] for line in proposed)
    command = [str(plain.python.with_name("tracepaper")), *page, "--port", "0"]
    served = Program(command, plain.folder, name="ui", extra={"BROWSER": "true"})
    served.wait_until(lambda: "http://127.0.0.1:" in served.out + served.err)
    assert served.stop().code == 0, served.err
    for arguments in others:
        done = plain.run(*arguments)
        assert done.returncode == 0, done.stderr
