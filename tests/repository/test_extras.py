"""An extra that is missing is said at once, under the option as typed, with exit code 2."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest
from command_line import Cli
from programs import ROOT

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import EXTRAS, require

NOT_ALL: Final = {"flash", "docs", "dev", "all"}
NAMED: Final[tuple[tuple[str, str, str], ...]] = (
    ("report last --db none.db --chart chart.svg", "matplotlib", "--chart"),
    ("explain last --db none.db --png decision.png", "matplotlib", "--png"),
    ("evaluate none --data none.csv --inspect attribution", "captum", "--inspect attribution"),
    (
        "sweep none.csv --strategy sma_cross --space fast=5,10 --sampler tpe",
        "optuna",
        "--sampler tpe",
    ),
    ("sweep none.csv --strategy sma_cross --space fast=5,10 --on ray", "ray", "--on ray"),
    ("train --data none.csv --out two --seeds 2 --on ray", "ray", "--on ray"),
    ("train --data none.csv --set model.kind=tree --out tree", "lightgbm", "model.kind=tree"),
    ("train --data none.csv --set ensemble.kind=tree --out two", "lightgbm", "ensemble.kind=tree"),
    ("models export none --to onnx --out none.onnx", "onnx", "--to onnx"),
    ("notify test --set notify.addresses=env:HOOK", "apprise", "[notify] addresses"),
    ("models export none --to onnx --out none.onnx", "onnxscript", "--to onnx"),
    ("data fetch AAPL --source yahoo --interval D --from 2025-01-01", "yfinance", "--source yahoo"),
    ("audit export last --db none.db --parquet rows", "pyarrow", "--parquet"),
    ("audit export last --db none.db --to postgresql://h/d", "psycopg", "--to"),
)
"""Commands over files that are not there: whatever is opened or computed first would say so."""


def extras() -> dict[str, list[str]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed: dict[str, list[str]] = tomllib.load(file)["project"]["optional-dependencies"]
    return listed


def hide(package: str, patch: pytest.MonkeyPatch) -> None:
    """Let *package* be missing: neither found nor imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        patch.delitem(sys.modules, name)
    patch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(("command", "package", "option"), NAMED)
def test_a_missing_extra_is_said_before_anything_is_opened(
    command: str,
    package: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
) -> None:
    monkeypatch.chdir(tmp_path)
    hide(package, monkeypatch)
    assert cli.err(*command.split(), code=2) == (
        f"{option} needs {package}: install it with pip install 'tracepaper[{EXTRAS[package]}]', "
        "or 'tracepaper[all]'.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_every_extra_is_asked_for_by_some_command() -> None:
    in_code = {"cvxpy", "polars"}  # by a strategy, and by a call for frames
    assert {package for _, package, _ in NAMED} | in_code == set(EXTRAS)


def test_each_package_is_named_with_the_extra_that_installs_it() -> None:
    brought = {
        (re.split(r"[^\w.-]", line, maxsplit=1)[0].replace("-", "_"), extra)
        for extra, lines in extras().items()
        if extra not in NOT_ALL
        for line in lines
    }
    assert set(EXTRAS.items()) <= brought
    assert {package for package, _ in brought} - set(EXTRAS) == {"onnxruntime"}  # a faster check


def test_all_installs_every_extra_but_kernels_and_tools() -> None:
    (line,) = extras()["all"]
    named = line.removeprefix("tracepaper[").removesuffix("]").split(",")
    assert named == sorted(set(extras()) - NOT_ALL)


def test_what_is_installed_or_not_asked_for_is_not_complained_of() -> None:
    require("matplotlib", "--chart")
    with pytest.MonkeyPatch.context() as patch:
        hide("matplotlib", patch)
        require("matplotlib", "--chart", None)
        with pytest.raises(ConfigInvalid, match=r"^--chart needs matplotlib: "):
            require("matplotlib", "--chart", Path("chart.svg"))
