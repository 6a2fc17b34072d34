"""Named holdouts, and how often each was used: once by each recipe.

The rule is docs/models.md, L47.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracepaper.replay.learning.recipe import recipe_of
from tracepaper.replay.learning.splits import date_ms, date_of
from tracepaper.storage.checkpoints import BUNDLED, dump
from tracepaper.storage.covariates import write_whole
from tracepaper.storage.sweeps import registry_path
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.units import iso

if TYPE_CHECKING:
    from tracepaper.replay.learning.dataset import Dataset

FILE_NAME: Final = "holdout_uses.toml"


class Holdout(NamedTuple):
    """From, inclusive, and until, exclusive, in UTC milliseconds; None for as far as there is."""

    name: str
    from_ms: int | None
    until_ms: int | None

    @property
    def text(self) -> str:
        """It in words: its name, and from when until when where that is said."""
        if self.from_ms is None and self.until_ms is None:
            return self.name
        start, until = ("" if of is None else date_of(of) for of in (self.from_ms, self.until_ms))
        return f"{self.name} {start}:{until}".strip()


WHOLE: Final = Holdout("untouched", None, None)


def read_holdouts(
    text: str | None, start: str | None = None, end: str | None = None
) -> list[Holdout]:
    """Return the holdouts of ``A=2024-10-01:2024-12-01,B=…:…``, or the one from *start* to *end*.

    Dates are UTC, the second is exclusive. Raises ``ConfigInvalid`` for anything else, for a name
    that comes twice, and for holdouts that overlap.
    """
    if text is None:
        whole = WHOLE._replace(
            from_ms=None if start is None else date_ms(start),
            until_ms=None if end is None else date_ms(end),
        )
        return _ordered([whole])
    if start or end:
        raise ConfigInvalid("--holdout says from when until when; leave --from and --to out.")
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
    return _ordered(holdouts)


def _ordered(holdouts: list[Holdout]) -> list[Holdout]:
    for place, holdout in enumerate(holdouts):
        if None not in holdout[1:] and (holdout.from_ms or 0) >= (holdout.until_ms or 0):
            raise ConfigInvalid(
                f"The holdout {holdout.text} ends before it begins; mend its dates."
            )
        for other in holdouts[:place]:
            if other.name == holdout.name:
                raise ConfigInvalid(
                    f"Two holdouts are called {holdout.name}; give each its own name."
                )
            if (holdout.from_ms or 0) < (other.until_ms or 0) and (other.from_ms or 0) < (
                holdout.until_ms or 0
            ):
                raise ConfigInvalid(
                    f"The holdouts {other.name} and {holdout.name} overlap: the second would "
                    "repeat the first; give holdouts of different time."
                )
    return holdouts


# --- uses


class HoldoutUse(NamedTuple):
    """One recipe's frozen weights judged on a holdout of some symbols."""

    recipe: str
    model: str
    symbols: tuple[str, ...]
    from_ms: int
    until_ms: int

    def overlaps(self, other: HoldoutUse) -> bool:
        """Return whether both are of one time and a symbol of both."""
        is_one_time = self.from_ms < other.until_ms and other.from_ms < self.until_ms
        return is_one_time and bool(set(self.symbols) & set(other.symbols))


def uses_path(folder: Path | None) -> Path:
    """Return the file that counts for the checkpoint in *folder*; None is a class of one's own."""
    if folder is None or folder.resolve().parent == BUNDLED.resolve():
        return registry_path().with_name(FILE_NAME)
    return folder.resolve().parent / FILE_NAME


def count_use(path: Path, new: HoldoutUse) -> tuple[int, str]:
    """Keep *new* in *path*; return how many recipes used its holdout, this one among them.

    Beside it a sentence where it could not be kept; else an empty text. Raises ``ConfigInvalid``
    for a file that is no list of uses.
    """
    uses = read_uses(path)
    kept = [use for use in uses if use != new]
    recipes = {use.recipe for use in (*kept, new) if use.overlaps(new)}
    warning = "" if new in uses else _write(path, [*uses, new])
    return len(recipes), warning


def count_training(folder: Path, card: Mapping[str, Any], data: Dataset) -> str:
    """Count the untouched part of *data*, on which a training judged the model in *folder*.

    Returns a sentence where it could not be kept; else an empty text. A training
    that judged nothing uses nothing.
    """
    holdout = data.untouched()
    if holdout is None:
        return ""
    symbols, from_ms, until_ms = holdout
    recipe = recipe_of(card).hash
    new = HoldoutUse(recipe, str(card["model"]["id"]), symbols, from_ms, until_ms)
    return count_use(uses_path(folder), new)[1]


def read_uses(path: Path) -> list[HoldoutUse]:
    """Return the uses that *path* holds; none where there is no file."""
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
            f"{path} is no list of uses ({shown(error)}); restore it, or move it away to count "
            "anew."
        ) from None


def _write(path: Path, every: Sequence[HoldoutUse]) -> str:
    """Write the list whole, by a rename; return a sentence where that cannot be."""
    rows = [
        {
            "recipe": use.recipe,
            "model": use.model,
            "symbols": list(use.symbols),
            "from": iso(use.from_ms),
            "until": iso(use.until_ms),
        }
        for use in every
    ]
    try:
        write_whole((dump({"use": rows}).encode(),), path)
    except OSError as error:
        return f"This use could not be counted in {path} ({error.strerror})."
    return ""
