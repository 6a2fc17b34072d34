"""Holdouts are parsed, and each recipe counts once as a use of its holdout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tracepaper.replay.learning.holdouts import (
    FILE_NAME,
    HoldoutUse,
    count_use,
    read_holdouts,
    read_uses,
    uses_path,
)
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import WHOLE, date_ms
from tracepaper.storage.checkpoints import DEFAULT_CHECKPOINT, read_card
from tracepaper.storage.sweeps import REGISTRY_VARIABLE
from tracepaper.strategies.errors import ConfigInvalid

A = HoldoutUse("one", "m1", ("BTCUSDT",), date_ms("2024-10-01"), date_ms("2024-12-01"))


def test_spans_are_read_with_names_and_dates() -> None:
    first, second = read_holdouts("A=2024-10-01:2024-12-01, B=2025-04-23:2025-06-03")
    assert first == ("A", date_ms("2024-10-01"), date_ms("2024-12-01"))
    assert second.text == "B 2025-04-23:2025-06-03"
    assert read_holdouts(None) == [WHOLE]
    (whole,) = read_holdouts(None, "2024-10-01", None)
    assert whole[1:] == (date_ms("2024-10-01"), None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("A", None, None), "write A=2024"),
        (("A=2024-10-01", None, None), "write A=2024"),
        (("=2024-10-01:2024-11-01", None, None), "write A=2024"),
        (("A=2024-10-01:soon", None, None), "no date"),
        (("A=2024-10-01:2024-09-01", None, None), "an end after its start"),
        ((None, "2024-10-01", "2024-10-01"), "an end after its start"),
        (("A=2024-10-01:2024-11-01,A=2025-10-01:2025-11-01", None, None), "own name, an end after"),
        (("A=2024-10-01:2024-11-01,B=2024-10-31:2025-11-01", None, None), "own name, an end after"),
        (("A=2024-10-01:2024-11-01", "2024-10-01", None), "leave --from and --to out"),
    ],
)
def test_spans_that_cannot_be_are_refused(
    given: tuple[str | None, str | None, str | None], message: str
) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        read_holdouts(*given)


def test_a_recipe_counts_once_a_span_and_other_spans_and_symbols_do_not(tmp_path: Path) -> None:
    path = tmp_path / "models" / FILE_NAME
    assert count_use(path, A) == (1, "")
    assert count_use(path, A) == (1, "")
    # Another seed of the recipe has other weights: kept, and no other candidate.
    assert count_use(path, A._replace(model="m2")) == (1, "")
    assert count_use(path, A._replace(recipe="two", model="m3")) == (2, "")
    later = A._replace(from_ms=A.until_ms, until_ms=A.until_ms + 1_000)
    assert count_use(path, later._replace(recipe="three")) == (1, "")
    assert count_use(path, A._replace(recipe="four", symbols=("ETHUSDT",))) == (1, "")
    inside = A._replace(from_ms=A.from_ms + 1_000, until_ms=A.until_ms - 1_000)
    assert count_use(path, inside._replace(recipe="five")) == (3, "")
    assert len(read_uses(path)) == 6
    assert read_uses(path)[0] == A
    assert [file.name for file in path.parent.iterdir()] == [FILE_NAME]


def test_a_list_that_is_damaged_is_refused_and_one_that_cannot_be_written_is_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE_NAME
    path.write_text("use = 3")
    with pytest.raises(ConfigInvalid, match="no list of uses"):
        count_use(path, A)
    count, warning = count_use(Path("/proc/nowhere") / FILE_NAME, A)
    assert count == 1
    assert "could not be counted" in warning


def test_what_comes_with_the_package_is_counted_in_the_users_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "trials.db"))
    assert uses_path(DEFAULT_CHECKPOINT) == tmp_path / FILE_NAME
    assert uses_path(None) == tmp_path / FILE_NAME
    assert uses_path(tmp_path / "mine" / "seed-3") == tmp_path / "mine" / FILE_NAME


def test_seeds_and_names_are_one_recipe_and_another_window_is_another() -> None:
    document = read_card(DEFAULT_CHECKPOINT)
    named = {**document, "model": {**document["model"], "name": "other"}}
    assert recipe_of(named).hash == recipe_of(document).hash
    luck = {"seed": 9, "threads": 1}
    for half in ("network", "rows"):
        assert recipe_of(changed(document, half, "training", luck)).hash == recipe_of(document).hash
    for half, section, chosen in (
        ("network", "architecture", {"window": 544}),
        ("network", "training", {"steps": 7}),
        ("rows", "training", {"rounds": 7}),
    ):
        assert recipe_of(changed(document, half, section, chosen)).hash != recipe_of(document).hash


def changed(
    card: dict[str, Any], half: str, section: str, chosen: dict[str, int]
) -> dict[str, Any]:
    """Return an ensemble's *card* with *chosen* in a section of one member."""
    part = {**card["parts"][half], section: {**card["parts"][half][section], **chosen}}
    return {**card, "parts": {**card["parts"], half: part}}
