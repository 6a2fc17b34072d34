"""Checkpoints are whole or refused."""

from __future__ import annotations

import hashlib
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.storage.checkpoints import (
    CARD_NAME,
    DEFAULT_CHECKPOINT,
    WEIGHTS_NAME,
    bundled,
    dump,
    find_bundled,
    identity,
    keep,
    kept_folder,
    listed,
    load,
    locate,
    parse,
    read_card,
    save,
)
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid


def card() -> dict[str, Any]:
    return {
        "model": {"kind": "flash", "name": "tiny"},
        "architecture": {"dim": 8, "horizons": [5, 30]},
        "features": {"schema_id": "v2-1m"},
        "market": {"interval": "1"},
        "calibration": {"content_free": 0.0, "slope": {"5": 0.5}},
    }


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(8, 3, generator=generator),
        "embed.bias": torch.randn(8, 2, generator=generator).T,  # not contiguous
    }


def test_a_checkpoint_reads_back_with_its_id(tmp_path: Path) -> None:
    saved = save(tmp_path / "a", tensors(), card())
    checkpoint = load(tmp_path / "a")
    assert checkpoint.sha256 == saved.sha256
    weights = hashlib.sha256((tmp_path / "a" / WEIGHTS_NAME).read_bytes()).hexdigest()
    assert checkpoint.card["model"]["weights_sha256"] == weights
    assert checkpoint.sha256 == identity(weights, checkpoint.card).sha256
    assert checkpoint.id == checkpoint.sha256[:12] == checkpoint.card["model"]["id"]
    assert checkpoint.card["architecture"] == card()["architecture"]
    for name, tensor in tensors().items():
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_equal_weights_have_equal_ids_and_others_do_not(tmp_path: Path) -> None:
    first = save(tmp_path / "a", tensors(), card())
    assert save(tmp_path / "b", tensors(), card()).id == first.id
    assert save(tmp_path / "c", tensors(seed=1), card()).id != first.id
    other = {**card(), "calibration": {"content_free": 0.1, "slope": {"5": 0.5}}}
    assert save(tmp_path / "d", tensors(), other).id != first.id


def test_an_id_does_not_depend_on_name_and_time(tmp_path: Path) -> None:
    def of(name: str, created: str) -> dict[str, Any]:
        model = {"kind": "flash", "name": name, "created": created}
        part = {"rows": {**card(), "model": model}}
        return {**card(), "model": model, "parts": part}

    first, second = (
        save(tmp_path / name, tensors(), of(name, created)).id
        for name, created in (("a", "2026-01-01T00:00:00Z"), ("b", "2026-01-02T00:00:00Z"))
    )
    assert first == second
    other = of("a", "2026-01-01T00:00:00Z")
    other["parts"]["rows"]["model"]["kind"] = "lstm"
    assert save(tmp_path / "c", tensors(), other).id != first


@pytest.mark.parametrize(
    ("before", "after"),
    [("dim = 8", "dim = 9"), ('"flash"', '"lstm"'), ("content_free = 0.0", "content_free = 0.5")],
)
def test_an_edited_card_is_refused(tmp_path: Path, before: str, after: str) -> None:
    save(tmp_path / "a", tensors(), card())
    path = tmp_path / "a" / CARD_NAME
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(CheckpointMismatch, match="was edited"):
        load(tmp_path / "a")


def test_an_older_checkpoint_is_replaced_and_nothing_is_left_over(tmp_path: Path) -> None:
    save(tmp_path / "a", tensors(), card())
    second = save(tmp_path / "a", tensors(seed=1), card())
    assert load(tmp_path / "a").id == second.id
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_card_that_cannot_be_written_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    first = save(tmp_path / "a", tensors(), card())
    bad = card() | {"figures": {"accuracy": float("inf")}}
    with pytest.raises(Exception, match=r"figures\.accuracy"):
        save(tmp_path / "a", tensors(seed=1), bad)
    assert load(tmp_path / "a").id == first.id
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_changed_byte_of_the_weights_is_found(tmp_path: Path, at: int) -> None:
    save(tmp_path / "a", tensors(), card())
    path = tmp_path / "a" / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="SHA-256"):
        load(tmp_path / "a")


def test_a_checkpoint_that_travelled_is_the_same_and_tells_no_path(tmp_path: Path) -> None:
    """Public reports: nerfstudio#3702, sample-factory#313, nnUNet#2681, bark#653, minimo#21."""
    saved = save(tmp_path / "a", tensors(), card())
    far = tmp_path / "far away \u00e4 1"
    shutil.copytree(tmp_path / "a", far)
    for path in far.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        path.chmod(0o444)
    assert {path.suffix for path in far.iterdir()} == {".safetensors", ".toml"}  # no pickle
    assert load(far).id == saved.id


@pytest.mark.parametrize("text", ["[model\n", "a = " + "[" * 3_000])
def test_a_card_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    save(tmp_path / "a", tensors(), card())
    (tmp_path / "a" / CARD_NAME).write_text(text)
    with pytest.raises(CheckpointMismatch, match="not TOML"):
        load(tmp_path / "a")


@pytest.mark.parametrize("section", ["model", "architecture", "features", "market", "calibration"])
def test_a_card_without_a_section_is_refused(tmp_path: Path, section: str) -> None:
    save(tmp_path / "a", tensors(), card())
    path = tmp_path / "a" / CARD_NAME
    lines = path.read_text().split("\n\n")
    path.write_text("\n\n".join(part for part in lines if not part.startswith(f"[{section}")))
    with pytest.raises(CheckpointMismatch, match=f"no whole card .*`{section}`"):
        read_card(tmp_path / "a")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = tensors()
    broken["embed.bias"][1, 3] = float("nan")
    first = save(tmp_path / "a", tensors(), card())
    with pytest.raises(CheckpointMismatch, match=r"embed\.bias"):
        save(tmp_path / "a", broken, card())
    assert load(tmp_path / "a").id == first.id


def test_a_used_checkpoint_is_kept_beside_its_database(tmp_path: Path) -> None:
    saved = save(tmp_path / "a", tensors(), card())
    database = tmp_path / "run.db"
    kept = keep(tmp_path / "a", database)
    assert kept == kept_folder(database, saved.id)
    save(tmp_path / "a", tensors(seed=1), card())
    assert load(kept).sha256 == saved.sha256
    assert keep(kept, database) == kept


def test_a_name_is_that_of_a_bundled_checkpoint_or_a_folder() -> None:
    assert locate("default") == DEFAULT_CHECKPOINT == bundled()[DEFAULT_CHECKPOINT.name]
    for name, folder in bundled().items():
        assert locate(name) == folder
        assert find_bundled(load(folder).card["model"]["id"]) == folder
        assert load(folder).card["model"]["name"] == name
    assert locate("./flash-1m") == Path("flash-1m")
    assert locate("models/mine") == Path("models/mine")
    assert find_bundled("0" * 12) is None


def test_listed_finds_a_checkpoint_and_those_one_level_below(tmp_path: Path) -> None:
    save(tmp_path / "a", tensors(), card())
    save(tmp_path / "b", tensors(seed=1), card())
    (tmp_path / "notes").mkdir()
    assert [folder.name for folder, _ in listed([tmp_path])] == ["a", "b"]
    assert [folder.name for folder, _ in listed([tmp_path / "a", tmp_path / "none"])] == ["a"]


# ---------------------------------------------------------------- cards


SCALARS = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TABLES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=5), max_size=4),
    lambda inner: st.dictionaries(
        KEYS, SCALARS | inner | st.lists(inner, min_size=1, max_size=3), max_size=4
    ),
    max_leaves=8,
)


@given(TABLES)
def test_what_is_read_is_what_was_written(card: dict[str, Any]) -> None:
    assert tomllib.loads(dump(card)) == card
    unknown = {**card, "unknown": [0.5, None]}  # an error of one block of days
    assert parse(dump(unknown)) == unknown


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", {1, 2}])
def test_what_toml_cannot_hold_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(ConfigInvalid, match=r"model\.odd"):
        dump({"model": {"odd": value}})
