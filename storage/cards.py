"""A model card as TOML text: what ``tomllib`` reads is what was written."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tracepaper.strategies.errors import ConfigInvalid

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LINE_LENGTH: Final = 100

Card = Mapping[str, object]


DERIVED: Final = ("id", "sha256")
"""Keys of ``[model]`` that follow from the weights and the rest of the card."""
ID_DIGITS: Final = 12


class Identity(NamedTuple):
    """What a checkpoint is known by: its weights and its card, so that neither can be exchanged."""

    sha256: str
    weights_sha256: str
    card: str  # canonical: JSON with sorted keys, without what follows from the rest

    @property
    def id(self) -> str:
        """The first twelve hexadecimal digits."""
        return self.sha256[:ID_DIGITS]

    @property
    def is_true(self) -> bool:
        """Whether the hash is the one of these weights and this card."""
        return self.sha256 == _hashed(self.weights_sha256, self.card)


def identity(weights_sha256: str, card: Card) -> Identity:
    """Return the identity of weights with that hash under *card*, whatever id the card names."""
    model = card.get("model")
    own = {k: v for k, v in model.items() if k not in DERIVED} if isinstance(model, Mapping) else {}
    text = json.dumps({**card, "model": own}, sort_keys=True, ensure_ascii=False, default=str)
    return Identity(_hashed(weights_sha256, text), weights_sha256, text)


def _hashed(weights_sha256: str, card: str) -> str:
    return hashlib.sha256(f"{weights_sha256}\n{card}".encode()).hexdigest()


def dump(card: Card) -> str:
    """Return *card* as TOML: tables of text, numbers, booleans, lists and lists of tables.

    Raises ``ConfigInvalid`` for anything else, None and non-finite numbers among it.
    """
    return "\n".join(_table(card, ())).strip() + "\n"


def _table(table: Card, path: tuple[str, ...]) -> list[str]:
    """Return the lines of a table: its values first, then its sub-tables."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in table.items():
        inner = (*path, key)
        name = ".".join(_key(part) for part in inner)
        if isinstance(value, Mapping):
            own = [] if value and _only_tables(value) else ["", f"[{name}]"]
            tables += [*own, *_table(value, inner)]
        elif rows := _rows(value):
            for row in rows:
                tables += ["", f"[[{name}]]", *_table(row, inner)]
        else:
            lines.append(f"{_key(key)} = {_value(value, name)}")
    return [*lines, *tables]


def _only_tables(table: Card) -> bool:
    return all(isinstance(value, Mapping) or _rows(value) for value in table.values())


def _rows(value: object) -> list[Card]:
    """Return the tables of a list of tables; empty for anything else."""
    if not isinstance(value, list | tuple):
        return []
    rows = [row for row in value if isinstance(row, Mapping)]
    return rows if len(rows) == len(value) else []


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    escaped = "".join(
        _ESCAPES.get(sign, sign if sign.isprintable() else f"\\U{ord(sign):08x}") for sign in text
    )
    return f'"{escaped}"'


def _value(value: object, name: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
        case list() | tuple():
            return _list(value, name)
        case _:
            raise ConfigInvalid(f"A card cannot hold {value!r} at {name}; write text or a number.")


def _list(values: Sequence[object], name: str) -> str:
    """Return a list on one line, or on several where it is long."""
    texts = [_value(value, name) for value in values]
    line = f"[{', '.join(texts)}]"
    if len(line) + len(name) < _LINE_LENGTH:
        return line
    rows: list[str] = []
    for text in texts:
        if rows and len(rows[-1]) + len(text) < _LINE_LENGTH - 4:
            rows[-1] += f" {text},"
        else:
            rows.append(f"  {text},")
    return "\n".join(["[", *rows, "]"])
