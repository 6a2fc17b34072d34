"""A recipe as a file: ``--set`` over it, and every key with its text.

A field of a section's dataclass declares a key, so that files, ``--set``, ``--init`` and ``--keys``
know the same ones. Values keep the type that was written, for hashes cover it.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

from msgspec import Meta

from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.estimator import Estimator, estimators
from tracepaper.replay.learning.recipe import DEFAULT_KIND, SCHEMA, THREADS, over
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.tabular import ENSEMBLE
from tracepaper.strategies.networks.keys import (
    NUMBER,
    TEXT,
    WHOLE,
    Key,
    checked,
    keys_of,
    nearest,
)

Document = Mapping[str, Any]
Section = Mapping[str, Key]
ARCHITECTURE: Final = "architecture"
_TIMED: Final = (("architecture", "horizons"), ("calibration", "horizon"))
"""Keys that take times such as 4h beside numbers of bars."""
_DATES: Final = ("train_until", "validation_until", "calibration_until")


@dataclass(frozen=True)
class _Model:
    kind: Annotated[str, Meta(description="Kind of model; ? lists all.")] = DEFAULT_KIND
    name: Annotated[str, Meta(description="Name on the card; empty: the folder's.")] = ""


@dataclass(frozen=True)
class _Features:
    schema_id: Annotated[
        str, Meta(description="Feature schema: v2 or tree of the interval, or one such as v2-15m.")
    ] = SCHEMA
    intervals: Annotated[
        tuple[str, ...],
        Meta(description="Interval of the model, then others to train on: 15m,5m,1h."),
    ] = ()
    calendar: (
        Annotated[str, Meta(description="Shares: the exchange's calendar, such as XNAS.")] | None
    ) = None


@dataclass(frozen=True)
class _Training:
    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = THREADS
    device: Annotated[str, Meta(description="Where to fit: cpu or cuda.")] = "cpu"
    explained_bars: (
        Annotated[
            int,
            Meta(
                ge=500,
                description="Calibration and test bars to explain; unset: as many as in minutes.",
            ),
        ]
        | None
    ) = None
    baselines: Annotated[
        tuple[str, ...], Meta(description="Baselines to fit as well, which takes minutes: lstm.")
    ] = ()


@dataclass(frozen=True)
class _Calibration:
    horizon: (
        Annotated[int, Meta(ge=1, description="Horizon that the gates use; unset: the middle one.")]
        | None
    ) = None


@dataclass(frozen=True)
class _Split:
    """All three dates, or none for shares of 65, 10 and 10 %; the rest is the test set."""

    train_until: Annotated[str, Meta(description="End of training (date).")] | None = None
    validation_until: Annotated[str, Meta(description="End of validation (date).")] | None = None
    calibration_until: (
        Annotated[str, Meta(description="End of calibration (date); the rest is the test set.")]
        | None
    ) = None
    embargo_bars: (
        Annotated[
            int,
            Meta(ge=0, description="Bars left out between the parts; unset: the longest horizon."),
        ]
        | None
    ) = None
    second_span: (
        Annotated[str, Meta(description="Begin of the test set's second span (date).")] | None
    ) = None


@dataclass(frozen=True)
class _Ensemble:
    kind: (
        Annotated[str, Meta(description="Train an ensemble with this kind: tree or glm.")] | None
    ) = None
    schema_id: (
        Annotated[
            str, Meta(description="Its feature schema, such as tree-1m; unset: the network's.")
        ]
        | None
    ) = None
    members: Annotated[
        tuple[str, ...],
        Meta(description="Join two trained ones instead: folders of a network and a tree or glm."),
    ] = ()
    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = THREADS


class RecipeKind(NamedTuple):
    """A kind of model: what it is, and the keys of its recipe by section."""

    name: str
    summary: str
    sections: Mapping[str, Section]


def kinds() -> Mapping[str, RecipeKind]:
    """Return every kind of model that a recipe names, by its name."""
    return {
        name: RecipeKind(name, estimator.kind.summary, _sections(estimator))
        for name, estimator in estimators().items()
        if not estimator.is_section
    }


def _sections(estimator: Estimator) -> dict[str, Section]:
    shared = keys_of(_Training)
    if estimator.section != ARCHITECTURE:
        return {
            "model": keys_of(_Model),
            estimator.section: keys_of(estimator.Keys),
            "training": {name: shared[name] for name in estimator.chosen_training},
        }
    found: dict[str, Section] = {
        "model": keys_of(_Model),
        ARCHITECTURE: keys_of(estimator.Keys),
        "training": keys_of(estimator.Options)
        | {name: shared[name] for name in estimator.chosen_training},
    }
    if estimator.kind.source == DataSource.ORDER_BOOKS:
        return found
    features = keys_of(_Features)
    if estimator.kind.source == DataSource.CLOSES:
        del features["calendar"]
    found |= {
        "features": features,
        "calibration": keys_of(_Calibration),
        "split": keys_of(_Split),
    }
    if estimator.joins_rows:
        found[ENSEMBLE] = keys_of(_Ensemble) | keys_of(BoostingOptions)
    return found


def kind_of(document: Document) -> RecipeKind:
    """Return the kind that a recipe or a card names; raise ``ConfigInvalid`` for an unknown one."""
    known = kinds()
    model = document.get("model", {})
    name = model.get("kind", DEFAULT_KIND) if isinstance(model, Mapping) else DEFAULT_KIND
    if not isinstance(name, str) or name not in known:
        raise ConfigInvalid(
            f"There is no kind of model called {name!r}{nearest(str(name), known)}; `tracepaper "
            "train --init ?` says what each is."
        )
    return known[name]


# --- from what is written


class KeyValue(NamedTuple):
    """``SECTION.KEY=VALUE`` as it was written; without a section it is of the architecture."""

    option: str
    text: str
    section: str
    key: str
    value: str

    @classmethod
    def read(cls, option: str, text: str) -> KeyValue:
        """Part *text*; raise ``ConfigInvalid`` where it sets no key."""
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().rpartition(".")
        if not equals or not key or (dot and not section):
            raise ConfigInvalid(
                f"{option} {text} sets no key; write one such as encoding=alibi, "
                "clock=week,funding or training.steps=500."
            )
        return cls(option, text, section or ARCHITECTURE, key, value.strip())

    def typed(
        self, sections: Mapping[str, Section], owner: str, *, derived: bool = False
    ) -> object:
        """Return its value as a document of *sections*, the *owner*'s, holds it.

        With *derived* it may be of a key that training takes from the data.

        A list is its entries by commas, or TOML's; a number or a flag is TOML's; text is itself.
        Raises ``ConfigInvalid`` for a key that the recipe does not have, or a value out of range.
        """
        section = sections.get(self.section)
        if section is None:
            raise ConfigInvalid(
                f"{self.option} {self.text}: {owner} has no section "
                f"[{self.section}]{nearest(self.section, sections)}."
            )
        key = section.get(self.key)
        chosen = [name for name, other in section.items() if not other.derived]
        if key is None:
            raise ConfigInvalid(
                f"{self.option} {self.text}: {owner} has no "
                f"{self.section}.{self.key}{nearest(self.key, chosen)}."
            )
        if key.derived and not derived:
            raise ConfigInvalid(
                f"{self.option} {self.text}: {self.section}.{self.key} follows from the data; "
                "leave it out."
            )
        value = _value(key, self.value)
        timed = (self.section, self.key) in _TIMED and "features" in sections
        parts = value if isinstance(value, list) else [value]
        if timed and any(isinstance(part, str) for part in parts):
            return ",".join(map(str, parts))
        checked(key, value, self.section)
        return value


def _value(key: Key, text: str) -> object:
    if key.items_max is None:
        return _scalar(key, text)
    if text.startswith("["):
        return _toml(text)
    return [_scalar(key, part.strip()) for part in text.split(",") if part.strip()]


def _scalar(key: Key, text: str) -> object:
    value = _toml(text)
    # A name, a date or an interval is text though TOML would read 5 or 2025-01-01 otherwise.
    return text if key.type == TEXT and not isinstance(value, str) else value


def _toml(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_settings(document: Document, texts: Sequence[str]) -> dict[str, Any]:
    """Return *document* with each ``SECTION.KEY=VALUE`` of *texts* laid over it.

    Raises ``ConfigInvalid`` for a key or a value that the recipe of its kind cannot have.
    """
    settings = [KeyValue.read("--set", text) for text in texts]
    for setting in settings:  # the kind says which other keys there are
        if (setting.section, setting.key) == ("model", "kind"):
            document = over(document, {"model": {"kind": setting.value}})
    kind = kind_of(document)
    for setting in settings:
        value = setting.typed(kind.sections, f"a recipe of the kind {kind.name}")
        document = over(document, {setting.section: {setting.key: value}})
    dates = [f"split.{name}" for name in _DATES]
    if 0 < sum(name in document.get("split", {}) for name in _DATES) < len(_DATES):
        raise ConfigInvalid(f"Set all three of {dates[0]}, {dates[1]} and {dates[2]}, or none.")
    return dict(document)


@dataclass(frozen=True)
class EvaluationOptions:
    """How ``evaluate`` works, beside what it is asked."""

    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = THREADS
    explained_bars: (
        Annotated[int, Meta(ge=500, description="Bars to explain for the gates; takes minutes.")]
        | None
    ) = None


def evaluation_options(texts: Sequence[str]) -> tuple[EvaluationOptions, list[str]]:
    """Return the options that *texts* set as ``evaluation.KEY=VALUE``, and the other texts."""
    prefix = "evaluation."
    own = [KeyValue.read("--set", text) for text in texts if text.startswith(prefix)]
    sections = {"evaluation": keys_of(EvaluationOptions)}
    values: dict[str, Any] = {each.key: each.typed(sections, "evaluate") for each in own}
    return EvaluationOptions(**values), [text for text in texts if not text.startswith(prefix)]


# --- to what is read

_HEADER: Final = re.compile(r"\[(\w+)\]")
_ENTRY: Final = re.compile(r"(\w+) = ")


def commented(text: str, kind: RecipeKind) -> str:
    """Return the TOML *text* of a recipe with the text of each key above it.

    Keys that are not set stand at the end of their section, and sections without one at the end
    of the text, as comments.
    """
    lines: list[str] = []
    sections = dict(kind.sections)
    unset: dict[str, Key] = {}
    for line in text.splitlines():
        if header := _HEADER.fullmatch(line):
            unset = dict(sections.pop(header[1]))
        elif entry := _ENTRY.match(line):
            lines.append(_comment(unset.pop(entry[1])))
        elif not line:  # the end of a section
            lines += _as_comments(unset)
            unset = {}
        lines.append(line)
    lines += _as_comments(unset)
    for name, section in sections.items():
        lines += ["", f"# [{name}]", *_as_comments(section)]
    return "\n".join(lines) + "\n"


def _as_comments(section: Section) -> Iterator[str]:
    for key in section.values():
        if not key.derived:
            yield from (_comment(key), f"# {key.name} =")


def _comment(key: Key) -> str:
    return f"# {key.text.removesuffix('.')}{f' ({key.range})' if key.range else ''}."


_LISTS: Final = {WHOLE: "list of whole numbers", NUMBER: "list of numbers", TEXT: "list of text"}


class KeyRow(NamedTuple):
    """One key of a recipe as it is listed."""

    key: str
    type: str
    range: str
    default: Any  # None where it is not set
    text: str


def key_rows(kind: RecipeKind, default: Document) -> list[KeyRow]:
    """Return every key of *kind* that can be set; *default* is the recipe without a choice."""
    return [
        KeyRow(
            f"{section}.{name}",
            key.type if key.items_max is None else _LISTS[key.type],
            key.range,
            default.get(section, {}).get(name, key.default),
            key.text,
        )
        for section, declared in kind.sections.items()
        for name, key in declared.items()
        if not key.derived
    ]
