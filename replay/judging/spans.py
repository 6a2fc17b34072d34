"""Named spans of untouched time, and how often each was opened.

A span is untouched until a choice is made by it. So each recipe whose frozen weights were judged on
it counts as one opening, however often it was judged again: what many recipes were tried on is
evidence of less. The file is the folder's that holds the checkpoints; what comes with the package,
and classes, are counted in the user's state.

The rule is docs/models.md, L47.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tracepaper.replay.training.aligned_pipeline import AlignedRecipe
from tracepaper.replay.training.ensemble import EnsembleRecipe
from tracepaper.replay.training.material import Material
from tracepaper.replay.training.recipe import Recipe
from tracepaper.replay.training.rowwise import RowRecipe
from tracepaper.replay.training.series import Part, date_ms, iso
from tracepaper.storage.checkpoints import BUNDLED, Checkpoint, dump
from tracepaper.storage.sweeps import registry_path
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.forecasters.build import is_ensemble
from tracepaper.strategies.forecasters.cross_asset import is_together
from tracepaper.strategies.forecasters.tabular import row_kind
from tracepaper.strategies.order_book import KIND

FILE_NAME: Final = "openings.toml"
_LUCK: Final = ("seed", "threads", "device", "explained_bars", "baselines")
_NEWER: Final = (("entropy_weight", 0.0),)
"""Keys at values that change nothing, which older recipes do not have."""
"""Keys of ``[training]`` by which one recipe is no other."""


class NamedSpan(NamedTuple):
    """From, inclusive, and until, exclusive, in UTC milliseconds; None for as far as there is."""

    name: str
    from_ms: int | None
    until_ms: int | None

    @property
    def until(self) -> str:
        """Its end as a date."""
        return "" if self.until_ms is None else _date(self.until_ms)

    @property
    def text(self) -> str:
        """It in words: its name, and from when until when where that is said."""
        if self.from_ms is None and self.until_ms is None:
            return self.name
        start = "" if self.from_ms is None else _date(self.from_ms)
        return f"{self.name} {start}:{self.until}".strip()


WHOLE: Final = NamedSpan("untouched", None, None)


def _date(ms: int) -> str:
    return iso(ms).removesuffix("T00:00:00Z")


def read_spans(
    text: str | None, start: str | None = None, end: str | None = None
) -> list[NamedSpan]:
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
    found = []
    for part in text.split(","):
        name, _, dates = part.strip().partition("=")
        first, _, last = dates.partition(":")
        if not (name and first and last):
            raise ConfigInvalid(
                f"--holdout is {shown(text)}; write "
                "A=2024-10-01:2024-12-01,B=2025-04-23:2025-06-03."
            )
        found.append(NamedSpan(name, date_ms(first), date_ms(last)))
    return _ordered(found)


def _ordered(spans: list[NamedSpan]) -> list[NamedSpan]:
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


class SpanOpening(NamedTuple):
    """One recipe's frozen weights judged on one span of some symbols."""

    recipe: str
    model: str
    symbols: tuple[str, ...]
    from_ms: int
    until_ms: int

    def overlaps(self, other: SpanOpening) -> bool:
        """Return whether both are of one time and a symbol of both."""
        is_one_time = self.from_ms < other.until_ms and other.from_ms < self.until_ms
        return is_one_time and bool(set(self.symbols) & set(other.symbols))


def recipe_hash(card: Mapping[str, Any]) -> str:
    """Return the hash of all that was chosen for a checkpoint: twelve hexadecimal digits.

    Seed, name, threads and device are left out: repeats of one recipe are one candidate.
    """
    if is_ensemble(card):
        both = EnsembleRecipe.of(card, created_ms=0)
        hashes = f"{_hash(both.network.document())} {_hash(tomllib.loads(both.rows.text()))}"
        return hashlib.sha256(hashes.encode()).hexdigest()[:12]
    if card["model"].get("kind") == KIND:
        names = ("model", "architecture", "features", "training")
        return _hash({name: dict(card[name]) for name in names})
    if is_together(card):
        return _hash(AlignedRecipe.of(card).document())
    if row_kind(card) is None:
        return _hash(Recipe.of(card).document())
    return _hash(tomllib.loads(RowRecipe.of(card, created_ms=0).text()))


def _hash(chosen: Mapping[str, Any]) -> str:
    training = {
        name: value
        for name, value in chosen["training"].items()
        if name not in _LUCK and (name, value) not in _NEWER
    }
    document = {**chosen, "training": training, "model": {"kind": chosen["model"]["kind"]}}
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def openings_path(folder: Path | None) -> Path:
    """Return the file that counts for the checkpoint in *folder*; None is a class of one's own."""
    if folder is None or folder.resolve().parent == BUNDLED.resolve():
        return registry_path().with_name(FILE_NAME)
    return folder.resolve().parent / FILE_NAME


def opened(path: Path, new: SpanOpening) -> tuple[int, str]:
    """Keep *new* in *path*; return how many recipes opened its span, this one among them.

    Beside it a sentence where it could not be kept; else an empty text. Raises ``ConfigInvalid``
    for a file that is no list of openings.
    """
    known = read_openings(path)
    kept = [one for one in known if one != new]
    recipes = {one.recipe for one in (*kept, new) if one.overlaps(new)}
    said = "" if new in known else _write(path, [*known, new])
    return len(recipes), said


def opened_by_training(folder: Path, found: Checkpoint, material: Material) -> str:
    """Count the untouched part of *material*, on which a training judged what lies in *folder*.

    Returns a sentence where it could not be kept; else an empty text.
    """
    symbols = material.symbols(Part.TEST)
    last = max(int(one.close_time_ms[-1]) for one in material.segments)
    start = material.split.calibration_until_ms
    new = SpanOpening(recipe_hash(found.card), found.id, symbols, start, last)
    return opened(openings_path(folder), new)[1]


def read_openings(path: Path) -> list[SpanOpening]:
    """Return the openings that *path* holds; none where there is no file."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return [
            SpanOpening(
                str(row["recipe"]),
                str(row["model"]),
                tuple(map(str, row["symbols"])),
                date_ms(str(row["from"])),
                date_ms(str(row["until"])),
            )
            for row in document["opening"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigInvalid(
            f"{path} is no list of openings ({shown(error)}); restore it, or move it away to count "
            "anew."
        ) from None


def _write(path: Path, every: Sequence[SpanOpening]) -> str:
    """Write the list whole, by a rename; return a sentence where that cannot be."""
    rows = [
        {
            "recipe": one.recipe,
            "model": one.model,
            "symbols": list(one.symbols),
            "from": iso(one.from_ms),
            "until": iso(one.until_ms),
        }
        for one in every
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
        ) as file:
            file.write(dump({"opening": rows}))
        Path(file.name).replace(path)
    except OSError as error:
        return f"This opening could not be counted in {path} ({error.strerror})."
    return ""
