"""Named spans of untouched time, and how often each was opened: once by each recipe.

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
    """Return the spans of ``A=2024-10-01:2024-12-01,B=…:…``, or the one from *start* to *end*.

    Dates are UTC, the second is exclusive. Raises ``ConfigInvalid`` for anything else, for a name
    that comes twice, and for spans that overlap.
    """
    if text is None:
        whole = WHOLE._replace(
            from_ms=None if start is None else date_ms(start),
            until_ms=None if end is None else date_ms(end),
        )
        return _ordered([whole])
    if start or end:
        raise ConfigInvalid("--holdout says from when until when; leave --from and --to out.")
    spans = []
    for part in text.split(","):
        name, _, dates = part.strip().partition("=")
        first, _, last = dates.partition(":")
        if not (name and first and last):
            raise ConfigInvalid(
                f"--holdout is {shown(text)}; write "
                "A=2024-10-01:2024-12-01,B=2025-04-23:2025-06-03."
            )
        spans.append(Holdout(name, date_ms(first), date_ms(last)))
    return _ordered(spans)


def _ordered(spans: list[Holdout]) -> list[Holdout]:
    for place, span in enumerate(spans):
        if None not in span[1:] and (span.from_ms or 0) >= (span.until_ms or 0):
            raise ConfigInvalid(f"The span {span.text} ends before it begins; mend its dates.")
        for other in spans[:place]:
            if other.name == span.name:
                raise ConfigInvalid(f"Two spans are called {span.name}; give each its own name.")
            if (span.from_ms or 0) < (other.until_ms or 0) and (other.from_ms or 0) < (
                span.until_ms or 0
            ):
                raise ConfigInvalid(
                    f"The spans {other.name} and {span.name} overlap: the second would repeat the "
                    "first; give spans of different time."
                )
    return spans


# --- openings


class HoldoutUse(NamedTuple):
    """One recipe's frozen weights judged on one span of some symbols."""

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


def opened(path: Path, new: HoldoutUse) -> tuple[int, str]:
    """Keep *new* in *path*; return how many recipes opened its span, this one among them.

    Beside it a sentence where it could not be kept; else an empty text. Raises ``ConfigInvalid``
    for a file that is no list of openings.
    """
    openings = read_uses(path)
    kept = [opening for opening in openings if opening != new]
    recipes = {opening.recipe for opening in (*kept, new) if opening.overlaps(new)}
    warning = "" if new in openings else _write(path, [*openings, new])
    return len(recipes), warning


def count_training(folder: Path, card: Mapping[str, Any], data: Dataset) -> str:
    """Count the untouched part of *data*, on which a training judged what lies in *folder*.

    Returns a sentence where it could not be kept; else an empty text. What was not judged opens
    nothing.
    """
    span = data.untouched()
    if span is None:
        return ""
    symbols, from_ms, until_ms = span
    recipe = recipe_of(card).hash
    new = HoldoutUse(recipe, str(card["model"]["id"]), symbols, from_ms, until_ms)
    return opened(uses_path(folder), new)[1]


def read_uses(path: Path) -> list[HoldoutUse]:
    """Return the openings that *path* holds; none where there is no file."""
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["opening"]
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
            f"{path} is no list of openings ({shown(error)}); restore it, or move it away to count "
            "anew."
        ) from None


def _write(path: Path, every: Sequence[HoldoutUse]) -> str:
    """Write the list whole, by a rename; return a sentence where that cannot be."""
    rows = [
        {
            "recipe": opening.recipe,
            "model": opening.model,
            "symbols": list(opening.symbols),
            "from": iso(opening.from_ms),
            "until": iso(opening.until_ms),
        }
        for opening in every
    ]
    try:
        write_whole((dump({"opening": rows}).encode(),), path)
    except OSError as error:
        return f"This opening could not be counted in {path} ({error.strerror})."
    return ""
