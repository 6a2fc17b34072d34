"""Train by the code of a revision and by the tree at hand; compare every byte that they write.

    PYTHONPATH=tests/support python tests/campaigns/same_bits.py REVISION [NAME]

Small forms of every kind, of one thread, on generated candles and books; NAME trains one of them.
Bits depend on processor and library, so both are made here and now, and none is stored. The code of
the revision is run by this environment: its commands must be where the installed names say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from depth_cases import long, write
from learning import DAY_BARS, FORMS, START_MS, learnable, recipe, write_csv

from tracepaper.replay.learning.splits import iso
from tracepaper.storage.checkpoints import dump

CARD: Final = "card.toml"
ROOT: Final = Path(__file__).resolve().parent.parent.parent
CREATED_NS: Final = 1_700_000_000_000_000_000
TRAIN: Final = f"""
import json, pathlib, sys, time
time.time_ns = lambda: {CREATED_NS}
import tracepaper
from tracepaper.daemon.cli import invoke
wanted, words = json.load(sys.stdin)
found = str(pathlib.Path(tracepaper.__file__).resolve().parent)
sys.exit(f"{{found}} was trained by, not {{wanted}}." if found != wanted else invoke(words))
"""
"""Run one command at one time by the package that is found first, which must be the wanted one."""
SYMBOLS: Final = ("AAAUSDT", "BBBUSDT", "CCCUSDT")
ROWS: Final = ("tree", "glm")
SMALL: Final = {"threads": 1, "explained_bars": 500}
NETWORK: Final = {"layers": 1, "dim": 8, "heads": 2}


def trainings(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a name and the words of a training for everything that is fitted, data in *folder*.

    All that is chosen stands in a recipe, since options are spelt differently in other revisions.
    """
    candles = write_csv(learnable(6 * DAY_BARS), folder)
    several = [
        write_csv(learnable(4 * DAY_BARS, seed=at, symbol=name), folder / "several")
        for at, name in enumerate(SYMBOLS)
    ]
    quarters = write_csv(learnable(22 * DAY_BARS), folder / "quarters")
    depths, of = long("exchange")
    write(folder / "books", depths, of=of)
    for name, form in FORMS.items():
        own = folder / name
        own.mkdir()
        yield name, [str(recipe(form, own)), "--data", str(candles)]

    def words(name: str, data: Sequence[Path], chosen: Mapping[str, Any]) -> list[str]:
        file = folder / f"{name}.toml"
        file.write_text(dump(chosen), encoding="utf-8")
        files = [word for path in data for word in ("--data", str(path))]
        return [str(file), *files]

    two = {"horizons": [5, 30]}
    for kind in ("crossasset", "portfolio"):
        own_key = {"factors": 2} if kind == "crossasset" else {"attention": "joint"}
        chosen = {
            "model": {"kind": kind},
            "architecture": {**NETWORK, **two, "window": 16, **own_key},
            "training": {**SMALL, "steps": 4, "length": 256},
            "split": split(2, 2.75, 3.25),
        }
        yield kind, words(kind, several, chosen)
    for kind in ROWS:
        chosen = {"model": {"kind": kind}, "architecture": two, "training": SMALL}
        yield kind, words(kind, [candles], {**chosen, "split": split(3, 4, 5)})
    chosen = {
        "model": {"kind": "flash"},
        "architecture": {**NETWORK, **two, "window": 16},
        "training": {**SMALL, "steps": 4, "length": 128},
        "features": {"schema_id": "v2-15m"},
        "ensemble": {"kind": "tree", "schema_id": "tree-15m"},
    }
    yield "ensemble", words("ensemble", [quarters], chosen)
    chosen = {
        "model": {"kind": "orderbook"},
        "architecture": {**NETWORK, "horizons": [1, 3], "window": 24},
        "training": {"threads": 1, "steps": 4, "windows": 2},
    }
    yield "books", words("books", [folder / "books"], chosen)


def split(*days: float) -> dict[str, str]:
    """Return ``[split]``, which ends the parts of the candles after so many days."""
    names = ("train_until", "validation_until", "calibration_until")
    dates = [iso(START_MS + round(day * 86_400_000)) for day in days]
    return dict(zip(names, dates, strict=True))


def train(code: Path, words: Sequence[str], out: Path) -> dict[str, bytes]:
    """Train by the package in *code*; return all files beside and in the checkpoint by name."""
    found = out.parent / "path"
    found.mkdir(parents=True)
    (found / "tracepaper").symlink_to(code)
    cache = () if "books.toml" in " ".join(words) else ("--cache", str(out.parent / "cache"))
    own = {"PYTHONPATH": str(found), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(out.parent)}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        input=json.dumps([str(code), ["train", *words, *cache, "--out", str(out)]]),
        cwd=found,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def differing_keys(old: bytes, new: bytes) -> list[str]:
    """Return the keys of two TOML files whose values differ, or that one of them lacks."""

    def flat(table: Mapping[str, Any], begins: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from flat(value, f"{begins}{key}.")
            else:
                yield f"{begins}{key}", value

    before, after = (dict(flat(tomllib.loads(one.decode()))) for one in (old, new))
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def checked_out(revision: str, folder: Path) -> Path:
    """Return a folder with the code of *revision*, and the compiled loops of the tree at hand."""
    folder.mkdir()
    packed = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        sys.exit(f"git knows no revision {revision!r}; name one, such as REV=main.")
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    for path in ROOT.glob("strategies/attention/native_*.so"):
        (folder / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    return folder


def main(revision: str = "", only: str = "") -> None:
    """Print what differs and fail, or print how many trainings are the same."""
    if not revision:
        sys.exit("Name the revision to compare with: make same-bits REV=main")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("several", "quarters"):
            (folder / name).mkdir()
        before = checked_out(revision, folder / "before")
        count, differing = 0, 0
        for name, words in trainings(folder):
            if only and name != only:
                continue
            count += 1
            old, new = (
                train(code, words, folder / side / name / "model")
                for side, code in (("old", before), ("new", ROOT))
            )
            other = sorted(file for file in {*old, *new} if old.get(file) != new.get(file))
            differing += bool(other)
            said = f"differ in {', '.join(other)}" if other else f"same {', '.join(old)}"
            if (keys := differing_keys(old.get(CARD, b""), new.get(CARD, b""))) or CARD in other:
                said += f" ({', '.join(keys) or 'the order of its keys'})"
            sys.stdout.write(f"{name}: {said}\n")
            sys.stdout.flush()
    if differing or not count:
        sys.exit(f"{differing} of {count} trainings differ from {revision}.")
    sys.stdout.write(f"{count} trainings are the same in every byte.\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
