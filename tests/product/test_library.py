"""docs/library.md lists every part of the attention library, and each line of it runs."""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import torch
from learning import choose
from programs import ROOT
from readme import blocks

from tracepaper.daemon.cli import invoke
from tracepaper.replay.learning.baselines import BASELINES
from tracepaper.strategies import attention
from tracepaper.strategies.allocation import WeightRule
from tracepaper.strategies.attention import backends, layer
from tracepaper.strategies.attention.layer import Layer
from tracepaper.strategies.attention.masks import MaskKind
from tracepaper.strategies.attention.methods import METHODS, AttendedTokens, Rollout
from tracepaper.strategies.forecasters.cross_asset import KINDS
from tracepaper.strategies.forecasters.tabular import ROW_KINDS
from tracepaper.strategies.networks.architecture import HEADS, network_kinds
from tracepaper.strategies.networks.cross_asset import CrossAssetConfig
from tracepaper.strategies.networks.encodings import CLOCKS, ENCODINGS
from tracepaper.strategies.order_book import KIND

PAGE: Final = (ROOT / "docs" / "library.md").read_text("utf-8")
SMALL: Final = {"dim": 8, "layers": 2, "heads": 2, "window": 16}
"""Sizes of the networks that are trained here, where a network has them."""
SHORT: Final = {"steps": 2, "length": 128, "windows": 8, "batch": 2, "explained_bars": 500}
"""Sizes of a fit, and of what is explained after it."""
CHARTS: Final = ("report/attention_charts.py", "explain/recomputed.py")


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
    lines, section = [], ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == 3 and cells[2].startswith("`"):
            lines.append(Line(section, cells[0], cells[2].strip("` |")))
    return lines


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
        "Mechanisms": [*(set(MaskKind) - {MaskKind.OTHER}), *backends.BACKENDS],
        "Encodings": [*ENCODINGS, *CLOCKS],
        "Heads": HEADS,
        "Explanations": [*METHODS, *(field.name for field in fields(Rollout))],
        "Diagnostics": [*BASELINES, *WeightRule],
        "Plots": charts(),
        "Calls": [
            *(name for name, item in vars(attention).items() if callable(item)),
            *layer.BACKENDS,
        ],
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


def kind_in(words: Sequence[str]) -> str:
    """Return the kind of model that a training's *words* choose, or whose recipe they print."""
    if "--init" in words:
        return words[words.index("--init") + 1]
    prefix = "model.kind="
    return next((word.removeprefix(prefix) for word in words if word.startswith(prefix)), "flash")


def sized(words: Sequence[str]) -> list[str]:
    """Return a training's *words* with sizes that its network has, and few steps."""
    name = kind_in(words)
    kinds = network_kinds()
    if name not in {*KINDS, *kinds}:
        return [*words, *choose("training.threads=1")]
    config = type(kinds[name].read({})) if name in kinds else CrossAssetConfig
    usual: dict[str, Any] = {field.name: field.default for field in fields(config)}
    lowered = {key: min(size, usual[key]) for key, size in SMALL.items() if key in usual}
    short = {f"training.{key}": size for key, size in (SHORT | {"threads": 1}).items()}
    return [*words, *choose(*(f"{key}={size}" for key, size in (lowered | short).items()))]


def printed(command: str, patch: pytest.MonkeyPatch) -> list[str]:
    """Return the words of a command of the page as a shell gives them, settings put aside."""
    words = shlex.split(os.path.expandvars(command))
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        patch.setenv(name, value)
    assert words.pop(0) == "tracepaper"
    return words


def run(command: str, patch: pytest.MonkeyPatch) -> int:
    """Run a command of the page, smaller where it trains; return its exit code."""
    if command.startswith("export "):
        for setting in shlex.split(command)[1:]:
            name, _, value = setting.partition("=")
            patch.setenv(name, os.path.expandvars(value))
        return 0
    words = printed(command, patch)
    return invoke(sized(words) if words[0] == "train" else words)


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, done: dict[str, tuple[int, str, str]]
) -> Iterator[Path]:
    """Return a folder in which the commands were run that the page begins with."""
    folder = tmp_path_factory.mktemp("library")
    [block] = [block for block in blocks(PAGE) if block.language == "bash"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TRACEPAPER_TRIALS", str(folder / "trials.db"))
        for command in block.lines:
            done[command] = (run(command, patch), command, "")
            assert done[command][0] == 0, command
        yield folder


@pytest.fixture(scope="module")
def done() -> dict[str, tuple[int, str, str]]:
    """Return what commands of the page did, so that one that stands there twice runs once."""
    return {}


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Return what the calls of the page may use."""
    [block] = [block for block in blocks(PAGE) if block.language == "python"]
    values: dict[str, Any] = {}
    exec(block.text, values)
    return values


COMMANDS: Final = [line for line in LINES if "tracepaper " in line.shown_by]
CALLS: Final = [line for line in LINES if "tracepaper " not in line.shown_by]


def needed(command: str) -> list[str]:
    """Return the commands of the page that make what *command* reads, and *command* last."""
    read = set(re.findall(r"[\w.]+", command))
    before = [line.shown_by for line in COMMANDS]
    makers = [
        line
        for line in before[: before.index(command)]
        if read & set(re.findall(r"(?:--out|tracepaper replay .*--db) ([\w.]+)", line))
    ]
    return list(dict.fromkeys([*(each for maker in makers for each in needed(maker)), command]))


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{line.section}: {line.names}")
def test_a_command_shows_what_it_stands_beside(
    line: Line,
    place: Path,
    done: dict[str, tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert place.is_dir()
    for command in needed(line.shown_by):
        if command not in done:
            code = run(command, monkeypatch)
            done[command] = (code, *capsys.readouterr())
    code, out, err = done[line.shown_by]
    assert code == 0, err[-500:]
    assert out


@pytest.mark.parametrize("line", CALLS, ids=lambda line: f"{line.section}: {line.names}")
def test_a_call_gives_finite_numbers(line: Line, names: dict[str, Any]) -> None:
    if "Rule." in line.shown_by:
        pytest.importorskip("cvxpy")
    tensors = list(_tensors(eval(line.shown_by, names)))
    assert tensors
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    assert any(bool((tensor != 0).any()) for tensor in tensors)


def _tensors(result: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in what a call gave, numbers and arrays among them."""
    if isinstance(result, AttendedTokens):
        result = (*result.weights.values(), result.l1_error)
    if isinstance(result, Layer):
        result = (result.query, result.key, result.value)
    if isinstance(result, tuple | list):
        for part in result:
            yield from _tensors(part)
    else:
        yield torch.as_tensor(result, dtype=torch.float64)
