"""docs/library.md lists every part of the attention library, and each line of it runs."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
from fakes import registered
from programs import ROOT
from readme import blocks

from tracepaper.daemon.cli import invoke
from tracepaper.replay.training.baselines import BASELINES
from tracepaper.strategies import attention
from tracepaper.strategies.allocation import Rule
from tracepaper.strategies.attention import backends, products
from tracepaper.strategies.attention.masks import MaskKind
from tracepaper.strategies.attention.rollout import RolloutOptions
from tracepaper.strategies.books import KIND
from tracepaper.strategies.forecasters.row_models import ROW_KINDS
from tracepaper.strategies.networks import encodings
from tracepaper.strategies.networks.architecture import network_kinds
from tracepaper.strategies.networks.clocks import CLOCKS
from tracepaper.strategies.networks.crossasset import KINDS, CrossAssetConfig
from tracepaper.strategies.networks.encodings import ENCODINGS, Encoding
from tracepaper.strategies.networks.heads import HEADS
from tracepaper.strategies.networks.looked import METHODS
from tracepaper.strategies.networks.workloads import FORMS

PAGE: Final = (ROOT / "docs" / "library.md").read_text("utf-8")
SAMPLES: Final = ROOT / "replay" / "samples"
FILES: Final = {
    "$BTC": str(SAMPLES / "binance_um_BTCUSDT_15m_2025-05.csv.gz"),
    "$SOL": str(SAMPLES / "binance_um_SOLUSDT_15m_2025-05.csv.gz"),
    "$FRAMES": str(ROOT / "tests/data/exchange/linear_session_2026-08-09_short.jsonl.gz"),
    "$OWN": str(ROOT / "tests/data/vectors.csv"),
}
SMALL: Final = {"dim": 8, "layers": 2, "heads": 2, "window": 16}
"""Sizes of the networks that are trained here, where a network has them."""
SHORT: Final = (
    *("--steps", "2", "--length", "128", "--windows", "8", "--batch", "2", "--threads", "1"),
    *("--horizons", "4,16", "--explained-bars", "500"),
)
"""What makes a training short."""
CHARTS: Final = (
    "report/attention_charts.py",
    "report/head_charts.py",
    "report/attention_map.py",
    "report/edges.py",
    "report/influence_charts.py",
    "explain/page_charts.py",
)


class Line(NamedTuple):
    """A line of a table: its section, what it lists and what shows it."""

    section: str
    names: str
    shown_by: str

    @property
    def listed(self) -> list[str]:
        """The names of the first column that are names of code."""
        return re.findall(r"`([^`]+)`", self.names)


def lines_of(page: str) -> list[Line]:
    """Return the lines of every table of *page*."""
    found, section = [], ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 3 and cells[2].startswith("`"):
            found.append(Line(section, cells[0], cells[2].strip("` |")))
    return found


LINES: Final = lines_of(PAGE)


def charts() -> list[str]:
    """Return the functions of the report that draw what attention did."""
    trees = (ast.parse((ROOT / "replay" / name).read_text("utf-8")) for name in CHARTS)
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if re.search(r"^[a-z].*_(chart|picture|view)$", name)]


def registered_names() -> dict[str, Iterable[str]]:
    """Return what is registered, by the section that must list it."""
    return {
        "Networks": [*network_kinds(), *KINDS, *ROW_KINDS, KIND],
        "Mechanisms": [*MaskKind, *backends.BACKENDS],
        "Encodings": [*ENCODINGS, *CLOCKS],
        "What a network says": HEADS,
        "Explanations": [
            *METHODS,
            *(one.name for one in fields(RolloutOptions) if one.name != "scale"),
        ],
        "Diagnostics": [*BASELINES, *Rule],
        "Plots": charts(),
        "Calls": [*attention.__all__, *(set(products.BACKENDS) - {"reference"})],
    }


def missing(page: str) -> list[str]:
    """Return what is registered and not listed in its section of *page*."""
    listed = {(line.section, name) for line in lines_of(page) for name in line.listed}
    return [
        f"{section}: {name}"
        for section, names in registered_names().items()
        for name in names
        if (section, name) not in listed
    ]


def test_everything_that_is_registered_is_listed() -> None:
    assert missing(PAGE) == [], "give it a line in docs/library.md"
    forms = {name for line in LINES for name in line.listed}
    assert set(FORMS) - forms == set()


def test_what_is_not_listed_is_found() -> None:
    def found(page: str) -> set[str]:
        return set(missing(page)) - known

    known = set(missing(PAGE))
    without = "\n".join(line for line in PAGE.splitlines() if not line.startswith("| `linear` |"))
    assert found(without) == {"Networks: linear"}
    with registered(ENCODINGS, lambda: encodings.encoding("recent")(Encoding)):
        assert found(PAGE) == {"Encodings: recent"}
    assert found(PAGE.replace("`heads_chart`", "heads")) == {"Plots: heads_chart"}


def sized(words: list[str]) -> list[str]:
    """Return a training's *words* with sizes that its network has, and few steps."""
    name = words[words.index("--network") + 1] if "--network" in words else "flash"
    kinds = network_kinds()
    if name in KINDS:
        has = {one.name for one in fields(CrossAssetConfig)}
        return [*words, *(f"--{key}={value}" for key, value in SMALL.items() if key in has), *SHORT]
    if name not in kinds:
        return [*words, "--threads", "1", "--horizons", "4,16"]
    has = {one.name for one in fields(type(kinds[name].read({})))}
    sizes = [f"--{key}={value}" for key, value in SMALL.items() if key in has]
    return [*words, *sizes, *SHORT]


def run(command: str, patch: pytest.MonkeyPatch) -> int:
    """Run a command of the page, smaller where it trains; return its exit code."""
    words = [FILES.get(word, word) for word in shlex.split(command)]
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        patch.setenv(name, value)
    assert words.pop(0) == "tracepaper"
    return invoke(sized(words) if words[0] == "train" else words)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with what the page begins with: a network, a run and a configuration."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "allocation.toml").write_text(
        (ROOT / "strategies" / "examples" / "allocation.toml").read_text("utf-8"), encoding="utf-8"
    )
    candle = re.search(r"`(BTCUSDT_1m.csv)`[^`]+`(open_time[^`]+)`, then `([^`]+)`", PAGE)
    assert candle is not None
    (folder / candle[1]).write_text(f"{candle[2]}\n{candle[3]}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRACEPAPER_TRIALS", str(folder / "trials.db"))
        recorded = re.search(r"`(tracepaper data record [^`]+)`", PAGE)
        assert recorded is not None
        assert run(recorded[1], patch) == 0
        assert run(LINES[0].shown_by, patch) == 0
        patch.setenv("TRACEPAPER_MODEL__CHECKPOINT", "flash")
        assert run("tracepaper replay $BTC --db run.db", patch) == 0
        yield folder


@pytest.fixture(scope="module")
def done() -> dict[str, tuple[int, str, str]]:
    """Return what commands of the page did, so that one that stands there twice runs once."""
    return {}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Return what the calls of the page may use."""
    [block] = [block for block in blocks(PAGE) if block.language == "python"]
    found: dict[str, Any] = {}
    exec(block.text, found)
    return found


COMMANDS: Final = [line for line in LINES[1:] if "tracepaper " in line.shown_by]
CALLS: Final = [line for line in LINES if "tracepaper " not in line.shown_by]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{line.section}: {line.names}")
def test_a_command_shows_what_it_stands_beside(
    line: Line,
    place: Path,
    done: dict[str, tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert place.is_dir()
    if line.shown_by not in done:
        code = run(line.shown_by, monkeypatch)
        done[line.shown_by] = (code, *capsys.readouterr())
    code, out, err = done[line.shown_by]
    assert code == 0, err[-500:]
    assert out


@pytest.mark.parametrize("line", CALLS, ids=lambda line: f"{line.section}: {line.names}")
def test_a_call_gives_finite_numbers(line: Line, names: dict[str, Any]) -> None:
    if "Rule." in line.shown_by:
        pytest.importorskip("cvxpy")
    found = list(_tensors(eval(line.shown_by, names)))
    assert found
    assert all(bool(torch.isfinite(one).all()) for one in found)
    assert any(bool((one != 0).any()) for one in found)


def _tensors(found: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a call gave, numbers and arrays among them."""
    if isinstance(found, tuple):
        for one in found:
            yield from _tensors(one)
    else:
        yield torch.as_tensor(found, dtype=torch.float64)
