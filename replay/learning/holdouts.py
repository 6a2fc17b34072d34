"""Named holdouts, and the count of recipes that used each.

The rule is docs/models.md, L47.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import WHOLE, Holdout, date_ms
from tracepaper.storage.checkpoints import BUNDLED, dump
from tracepaper.storage.covariates import write_whole
from tracepaper.storage.sweeps import registry_path
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.units import iso

FILE_NAME: Final = "holdout_uses.toml"
_NEVER: Final = 2**62


def read_holdouts(
    text: str | None, start: str | None = None, end: str | None = None
) -> list[Holdout]:
    """Return the holdouts of ``A=2024-10-01:2024-12-01,B=…:…``, or the one from *start* to *end*.

    Dates are UTC; the second is exclusive. Raises ``ConfigInvalid`` for anything else, for
    duplicate names, and for holdouts that overlap.
    """
    if text is None:
        holdout = WHOLE._replace(
            from_ms=None if start is None else date_ms(start),
            until_ms=None if end is None else date_ms(end),
        )
        return _checked([holdout])
    if start or end:
        raise ConfigInvalid("--holdout has dates of its own; leave --from and --to out.")
    holdouts = []
    for part in text.split(","):
        name, _, dates = part.strip().partition("=")
        first, _, last = dates.partition(":")
        if not (name and first and last):
            raise ConfigInvalid(
                f"--holdout is {shown(text)}; write "
                "A=2024-10-01:2024-12-01,B=2025-04-23:2025-06-03."
            )
        holdouts.append(Holdout(name, date_ms(first), date_ms(last)))
    return _checked(holdouts)


def _checked(holdouts: list[Holdout]) -> list[Holdout]:
    spans = sorted(
        (-_NEVER if each.from_ms is None else each.from_ms,
         _NEVER if each.until_ms is None else each.until_ms)
        for each in holdouts
    )  # fmt: skip
    are_spans = all(start < end for start, end in spans)
    are_apart = all(before[1] <= after[0] for before, after in pairwise(spans))
    if not (are_spans and are_apart and len({each.name for each in holdouts}) == len(holdouts)):
        raise ConfigInvalid(
            f"The holdouts are {', '.join(each.text for each in holdouts)}; give each its own "
            "name, an end after its start, and time that no other has."
        )
    return holdouts


# --- uses


class HoldoutUse(NamedTuple):
    """A judgement of one recipe's model on a holdout and its symbols."""

    recipe: str
    model: str
    symbols: tuple[str, ...]
    from_ms: int
    until_ms: int

    def overlaps(self, other: HoldoutUse) -> bool:
        """Return whether both share time and a symbol."""
        shares_time = self.from_ms < other.until_ms and other.from_ms < self.until_ms
        return shares_time and bool(set(self.symbols) & set(other.symbols))


def uses_path(folder: Path | None) -> Path:
    """Return the file of uses for the checkpoint in *folder*; None is a custom class."""
    if folder is None or folder.resolve().parent == BUNDLED.resolve():
        return registry_path().with_name(FILE_NAME)
    return folder.resolve().parent / FILE_NAME


def count_use(path: Path, new: HoldoutUse) -> tuple[int, str]:
    """Add *new* to *path*; return the number of recipes that used its holdout, including this one.

    The second result is a warning if the file could not be written, else empty. Raises
    ``ConfigInvalid`` for an invalid file.
    """
    uses = read_uses(path)
    recipes = {use.recipe for use in (*uses, new) if use.overlaps(new)}
    warning = "" if new in uses else _write(path, [*uses, new])
    return len(recipes), warning


def count_training(folder: Path, card: Mapping[str, Any], data: Dataset) -> str:
    """Count the use of *data*'s untouched part by the training of the model in *folder*.

    Returns a warning if the use could not be written, else empty. A training without a judgement
    is no use.
    """
    holdout = data.untouched()
    if holdout is None:
        return ""
    symbols, from_ms, until_ms = holdout
    recipe = recipe_of(card).hash
    new = HoldoutUse(recipe, str(card["model"]["id"]), symbols, from_ms, until_ms)
    return count_use(uses_path(folder), new)[1]


def read_uses(path: Path) -> list[HoldoutUse]:
    """Return the uses in *path*; empty if there is no file."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["use"]
        return [
            HoldoutUse(
                str(row["recipe"]),
                str(row["model"]),
                tuple(map(str, row["symbols"])),
                date_ms(str(row["from"])),
                date_ms(str(row["until"])),
            )
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigInvalid(
            f"{path} is no list of uses ({shown(error)}); restore it, or move it away to start a "
            "new count."
        ) from None


def _write(path: Path, uses: Sequence[HoldoutUse]) -> str:
    """Write the list atomically; return a sentence if that fails, else empty."""
    rows = [
        {
            "recipe": use.recipe,
            "model": use.model,
            "symbols": list(use.symbols),
            "from": iso(use.from_ms),
            "until": iso(use.until_ms),
        }
        for use in uses
    ]
    try:
        write_whole((dump({"use": rows}).encode(),), path)
    except OSError as error:
        return f"This use could not be counted in {path} ({error.strerror})."
    return ""
