"""What is kept is whole or not there, and is made again where it is not as wanted."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import deadline_s

from tracepaper.replay.learning.array_cache import ArrayCache, ArraySpec, default_folder
from tracepaper.strategies.errors import ConfigInvalid

WANTED = {"values": ArraySpec((40, 3), "<f4"), "sigma": ArraySpec((40,), "<f8")}


class Filler:
    """Fills arrays with a number, and counts how often it was asked."""

    def __init__(self, number: float = 1.5) -> None:
        self.number, self.times = number, 0

    def __call__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.times += 1
        for array in arrays.values():
            array[...] = self.number


def test_arrays_are_made_once_and_mapped(tmp_path: Path) -> None:
    fill = Filler()
    for _ in range(2):
        document = ArrayCache(tmp_path / "deep").get("key", WANTED, fill)
        assert isinstance(document["values"], np.memmap)
        assert (document["values"] == 1.5).all()
        document["values"][:] = 9.0  # nobody else's
        assert document["sigma"].dtype == np.float64
    assert fill.times == 1


def test_without_a_folder_they_are_made_in_memory() -> None:
    document = ArrayCache(None).get("key", WANTED, Filler())
    assert not isinstance(document["values"], np.memmap)
    assert (document["values"] == 1.5).all()


def test_whoever_is_cut_off_leaves_nothing(tmp_path: Path) -> None:
    def cut(arrays: dict[str, NDArray[Any]]) -> None:
        arrays["values"][:7] = 3.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ArrayCache(tmp_path).get("key", WANTED, cut)
    assert list(tmp_path.iterdir()) == []
    assert (ArrayCache(tmp_path).get("key", WANTED, Filler())["values"] == 1.5).all()


@pytest.mark.parametrize("damage", ["truncated", "missing", "other", "garbage"])
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    ArrayCache(tmp_path).get("key", WANTED, Filler())
    file = tmp_path / "key" / "values.npy"
    match damage:
        case "truncated":
            os.truncate(file, 200)
        case "missing":
            file.unlink()
        case "other":
            np.save(file, np.zeros((40, 4), dtype=np.float32))
        case _:
            file.write_bytes(b"not an array")
    fill = Filler(2.5)
    assert (ArrayCache(tmp_path).get("key", WANTED, fill)["values"] == 2.5).all()
    assert fill.times == 1


def test_of_two_that_write_the_same_one_wins(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=deadline_s())

    def fill(arrays: dict[str, NDArray[Any]]) -> None:
        both.wait()
        for array in arrays.values():
            array[...] = 4.0

    results: list[dict[str, NDArray[Any]]] = []

    def work() -> None:
        results.append(ArrayCache(tmp_path).get("key", WANTED, fill))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bool((arrays["values"] == 4.0).all()) for arrays in results] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match="give another --cache"):
        ArrayCache(tmp_path / "file").get("key", WANTED, Filler())


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_folder() == Path("/somewhere/tracepaper/training")
