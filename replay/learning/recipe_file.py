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

from tracepaper.replay.learning.recipe import THREADS, Document, Kind, Section, kind_of, over
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.keys import NUMBER, TEXT, WHOLE, Key, checked, keys_of, nearest

ARCHITECTURE: Final = "architecture"
_TIMED: Final = (("architecture", "horizons"), ("calibration", "horizon"))
"""Keys that take times such as 4h beside numbers of bars."""
_DATES: Final = ("train_until", "validation_until", "calibration_until")


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
    kind = kind_of(document, is_member=True)
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


def commented(text: str, kind: Kind) -> str:
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


def key_rows(kind: Kind, default: Document) -> list[KeyRow]:
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
