"""Checkpoints: weights as safetensors with their SHA-256, and the model card.

A checkpoint is a folder with ``weights.safetensors`` and ``card.toml``. The card has the SHA-256 of
the weights and a hash of weights and card, whose first twelve hex digits are the checkpoint's id.
torch and safetensors are imported only to read or write tensors: a run without a model needs
neither.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from numpy.typing import NDArray

from tracepaper.storage.covariates import sync_names
from tracepaper.storage.paths import path_of
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid

if TYPE_CHECKING:
    import torch

# ---------------------------------------------------------------- the card as TOML text

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

CardTable = Mapping[str, object]


DERIVED: Final = ("id", "sha256")
"""Keys of ``[model]`` that are computed from the weights and the rest of the card."""
_UNIDENTIFIED: Final = frozenset({*DERIVED, "name", "created"})
"""Keys of ``[model]`` and of its parts that change no forecast: equal trainings have one id."""
ID_DIGITS: Final = 12
KEPT_SUFFIX: Final = ".checkpoints"
"""A database's file name with this is the folder of the checkpoints that it used."""


class Identity(NamedTuple):
    """The hash that identifies a checkpoint, which covers its weights and its card."""

    sha256: str
    weights_sha256: str
    card: str  # canonical: JSON with sorted keys, without derived keys, name and time

    @property
    def id(self) -> str:
        """The first twelve hexadecimal digits of the hash."""
        return self.sha256[:ID_DIGITS]

    @property
    def is_true(self) -> bool:
        """Whether the hash matches the weights and the card."""
        return self.sha256 == _hashed(self.weights_sha256, self.card)


def identity(weights_sha256: str, card: CardTable) -> Identity:
    """Return the identity of weights with that hash and *card*.

    Its name, the time when it was made and an id in it do not count.
    """
    text = json.dumps(_identified(card), sort_keys=True, ensure_ascii=False, default=str)
    return Identity(_hashed(weights_sha256, text), weights_sha256, text)


def _identified(card: CardTable) -> dict[str, object]:
    """Return *card* and the cards of its parts without what does not identify a model."""
    kept = dict(card)
    if isinstance(model := card.get("model"), Mapping):
        kept["model"] = {key: model[key] for key in model if key not in _UNIDENTIFIED}
    if isinstance(parts := card.get("parts"), Mapping):
        kept["parts"] = {name: _identified(part) for name, part in parts.items()}
    return kept


def _hashed(weights_sha256: str, card: str) -> str:
    return hashlib.sha256(f"{weights_sha256}\n{card}".encode()).hexdigest()


def dump(card: CardTable) -> str:
    """Return *card* as TOML: tables of text, numbers, booleans, lists and lists of tables.

    Raises ``ConfigInvalid`` for other values, including non-finite numbers.
    """
    return "\n".join(_table(card, ())).strip() + "\n"


_tables = lru_cache(maxsize=16)(tomllib.loads)
"""Cached: each load of a configuration reads a card, and parsing it takes thirty milliseconds."""


def parse(text: str) -> dict[str, Any]:
    """Return the card that ``dump`` wrote as *text*; raise ``tomllib.TOMLDecodeError``."""
    return {key: _without_nan(value) for key, value in _tables(text).items()}


def _without_nan(value: object) -> object:
    """Return *value* with None for each nan, because ``dump`` writes None as nan."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _table(table: CardTable, path: tuple[str, ...]) -> list[str]:
    """Return the lines of a table: its values first, then its sub-tables."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in table.items():
        inner = (*path, key)
        name = ".".join(_key(part) for part in inner)
        if isinstance(value, Mapping):
            # A table that has only sub-tables needs no header: theirs imply it.
            needs_header = not value or not all(
                isinstance(item, Mapping) or _rows(item) for item in value.values()
            )
            tables += [*(["", f"[{name}]"] if needs_header else []), *_table(value, inner)]
        elif rows := _rows(value):
            for row in rows:
                tables += ["", f"[[{name}]]", *_table(row, inner)]
        else:
            lines.append(f"{_key(key)} = {_value(value, name)}")
    return [*lines, *tables]


def _rows(value: object) -> list[CardTable]:
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
        case None:  # an unknown error; TOML has no null
            return "nan"
        case list() | tuple():
            return f"[{', '.join(_value(item, name) for item in value)}]"
        case _:
            raise ConfigInvalid(f"A card cannot hold {value!r} at {name}; write text or a number.")


WEIGHTS_NAME: Final = "weights.safetensors"
CARD_NAME: Final = "card.toml"
BUNDLED: Final = Path(__file__).with_name("models")
"""The folder of the bundled checkpoints, each in a folder of its name."""
DEFAULT: Final = "default"
DEFAULT_CHECKPOINT: Final = BUNDLED / "flash-1m"
"""The checkpoint of ``model.checkpoint = "default"``, except at the intervals below."""
DEFAULT_BY_INTERVAL: Final = MappingProxyType({"15": "flash-15m"})


class CardModel(msgspec.Struct, frozen=True):
    """The section ``[model]``."""

    kind: str = ""
    id: str = ""
    sha256: str = ""
    created: str = "at an unknown time"


class CardArchitecture(msgspec.Struct, frozen=True):
    """The section ``[architecture]``; None in a model that sees one row."""

    layers: int | None = None
    window: int | None = None
    mask: str = ""
    attention: str = ""
    horizons: list[int] = []


class CardFeatures(msgspec.Struct, frozen=True):
    """The features of a row, and their lookback in bars."""

    schema_id: str = ""
    lookback: int | None = None


CardPair = tuple[float | None, float | None]


class CardFigures(msgspec.Struct, frozen=True):
    """Figures at one horizon by forecaster, with errors; None if unknown."""

    qlike: dict[str, CardPair] = {}
    sign_accuracy: dict[str, CardPair] = {}
    is_better: bool = False  # order books: better than the frequencies of the moves


class CardEnsemble(msgspec.Struct, frozen=True):
    """The weight of the network in an ensemble, by horizon."""

    network_share: dict[str, float] = {}


class CardHonesty(msgspec.Struct, frozen=True):
    """Warnings about the figures of the card."""

    sentences: list[str] = []


class CardPart(msgspec.Struct, frozen=True):
    """A member of an ensemble."""

    model: CardModel
    features: CardFeatures


class Card(CardPart, frozen=True):
    """The checked sections of a card; others are ignored."""

    architecture: CardArchitecture
    market: dict[str, Any]
    calibration: dict[str, Any]
    figures: dict[str, CardFigures] = {}
    honesty: CardHonesty = CardHonesty()
    parts: dict[str, CardPart] = {}
    ensemble: CardEnsemble = CardEnsemble()


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, the card as ``tomllib`` reads it, and the SHA-256 of the weights."""

    tensors: dict[str, torch.Tensor]
    card: dict[str, Any]
    sha256: str

    @property
    def id(self) -> str:
        """The first twelve hex digits of ``sha256``."""
        return self.sha256[:ID_DIGITS]


def bundled() -> dict[str, Path]:
    """Return the folders of the bundled checkpoints by name."""
    return {folder.name: folder for folder in sorted(BUNDLED.iterdir()) if is_checkpoint(folder)}


def locate(name: str) -> Path:
    """Return the folder of *name*: ``default``, another bundled checkpoint, or a path."""
    return DEFAULT_CHECKPOINT if name == DEFAULT else bundled().get(name, path_of(name))


def is_checkpoint(folder: Path) -> bool:
    """Return whether *folder* holds a checkpoint's card."""
    return folder / CARD_NAME in _HELD or (folder / CARD_NAME).is_file()


_HELD: Final[dict[Path, bytes]] = {}
"""Checkpoint files from another machine, by their path on that machine."""


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return weights and card in *folder* by path, for a machine without this folder."""
    return {path: _bytes(path) for path in (folder / WEIGHTS_NAME, folder / CARD_NAME)}


def hold(files: Mapping[Path, bytes]) -> None:
    """Make this process read *files* instead of those at the same paths on this machine."""
    _HELD.update(files)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint; raise ``CheckpointMismatch`` unless weights and card belong together."""
    from safetensors.torch import load as parse_tensors

    card = read_card(folder)
    weights = _bytes(folder / WEIGHTS_NAME)
    sha256 = hashlib.sha256(weights).hexdigest()
    expected = card["model"].get("weights_sha256")
    if expected != sha256:
        raise CheckpointMismatch(
            f"The weights in {folder} have SHA-256 {sha256[:ID_DIGITS]}… and their card names"
            f" {str(expected)[:ID_DIGITS]}…; restore the folder from where it came."
        )
    derived = identity(sha256, card)
    if (card["model"].get("id"), card["model"].get("sha256")) != (derived.id, derived.sha256):
        raise CheckpointMismatch(
            f"The card in {folder} was edited: with its weights it gives the id {derived.id}, and "
            f"it names {card['model'].get('id')}; restore the folder from where it came."
        )
    tensors = parse_tensors(weights)
    _check_finite(tensors, folder)
    return Checkpoint(tensors, card, derived.sha256)


def read_card(folder: Path) -> dict[str, Any]:
    """Read only a checkpoint's card; raise ``CheckpointMismatch`` if it is incomplete."""
    text = _bytes(folder / CARD_NAME)
    try:
        card = parse(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointMismatch(
            f"{folder / CARD_NAME} is not TOML ({error}); restore the card."
        ) from None
    try:
        msgspec.convert(card, Card)
    except msgspec.ValidationError as error:
        raise CheckpointMismatch(
            f"{folder / CARD_NAME} is no whole card ({error}); restore it."
        ) from None
    return card


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of *content* in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_side_file(folder: Path, name: str, sha256: str) -> dict[str, NDArray[Any]]:
    """Read a file of arrays in *folder*; raise ``CheckpointMismatch`` if its hash differs."""
    from safetensors import safe_open

    place = folder / name
    if (actual := sha256_of(_bytes(place))) != sha256:
        raise CheckpointMismatch(
            f"{place} has SHA-256 {actual[:ID_DIGITS]}… and the card names {sha256[:ID_DIGITS]}…; "
            "restore the file from where it came."
        )
    with safe_open(place, "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping


def save(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    card: CardTable,
    *,
    extra: Mapping[str, bytes] = MappingProxyType({}),
) -> Checkpoint:
    """Write a checkpoint, replacing an older one; return it as it reads back.

    ``[model] id``, ``sha256`` and ``weights_sha256`` are filled in; *extra* files are written
    beside the weights. The folder is written under another name and renamed, so that a reader
    finds the old one, the new one or, for an instant, none. Raises ``OSError`` that names *folder*
    if it cannot be written; then no part of the new one is left.
    """
    from safetensors.torch import save as tensor_bytes

    _check_finite(tensors, folder)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights = tensor_bytes(on_cpu)
    sha256 = hashlib.sha256(weights).hexdigest()
    model = {**_section(card, "model"), "weights_sha256": sha256}
    read = parse(dump({**card, "model": model}))
    derived = identity(sha256, read)
    text = dump({**read, "model": {**read["model"], "id": derived.id, "sha256": derived.sha256}})
    files = {WEIGHTS_NAME: weights, CARD_NAME: text.encode(), **extra}
    try:
        _put_files(files, folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    return load(folder)


def _put_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write *files* into a temporary folder, then rename it to *folder*, replacing an older one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, content in files.items():
            _write(new / name, content)
        new.chmod(0o755)
        sync_names(new)
        if folder.exists():  # a rename cannot replace a folder with files
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.rename(old / folder.name)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
        sync_names(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def keep(folder: Path, database: Path) -> Path:
    """Copy a checkpoint beside the *database* file that used it; return the copy's folder.

    The copy is in ``<database>.checkpoints/<id>``; an existing one is checked instead. Raises
    ``CheckpointMismatch`` if the content of either differs from its card.
    """
    checkpoint = load(folder)
    copy = kept_folder(database, checkpoint.id)
    if not copy.exists():
        save(copy, checkpoint.tensors, checkpoint.card)
    if load(copy).sha256 != checkpoint.sha256:
        raise CheckpointMismatch(
            f"{copy} holds other weights than those of its id; delete it and start again."
        )
    return copy


def keep_card(card: CardTable, model: Identity, database: Path) -> Path:
    """Keep beside *database* the *card* of a model without a checkpoint; return its folder.

    *model* is the identity of *card*, with a hash in place of that of weights.
    """
    folder = kept_folder(database, model.id)
    if not (folder / CARD_NAME).is_file():
        derived = {"id": model.id, "sha256": model.sha256}
        folder.mkdir(parents=True, exist_ok=True)
        text = dump({**card, "model": {**_section(card, "model"), **derived}})
        _write(folder / CARD_NAME, text.encode())
    return folder


class FittedSpan(NamedTuple):
    """A period on whose bars a model was fitted; its end is exclusive."""

    name: str  # training, validation or calibration
    from_ms: int | None  # None if the card does not have the first bar
    until_ms: int


_FITTED: Final = {
    "train_until": "training",
    "validation_until": "validation",
    "calibration_until": "calibration",
}


def fitted_spans(card: Mapping[str, Any]) -> tuple[FittedSpan, ...]:
    """Return the periods on which the model of *card* was fitted, in order.

    Each begins where the one before ends. Empty if the card does not have them.
    """
    try:
        ends = [
            (name, _date_ms(text))
            for key, name in _FITTED.items()
            if (text := card.get("split", {}).get(key)) is not None
        ]
        files = card.get("data", {}).get("files", ())
        first = min((_date_ms(file["from"]) for file in files if "from" in file), default=None)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return ()
    starts = [first, *(until_ms for _, until_ms in ends)]
    return tuple(
        FittedSpan(name, since, until) for since, (name, until) in zip(starts, ends, strict=False)
    )


def _date_ms(text: str) -> int:
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def kept_folder(database: Path, model_id: str) -> Path:
    """Return the folder of a checkpoint that *database* used."""
    return kept_checkpoints(database) / model_id


def kept_checkpoints(database: Path) -> Path:
    """Return the folder with every checkpoint that *database* used."""
    return database.with_name(database.name + KEPT_SUFFIX)


def find_bundled(model_id: str) -> Path | None:
    """Return the folder of the bundled checkpoint with that id; None if there is none."""
    for folder in bundled().values():
        if read_card(folder)["model"]["id"] == model_id:
            return folder
    return None


def find_kept(database: Path, model_id: str) -> Path:
    """Return the folder of the checkpoint that *database* used.

    If it is missing, the bundled checkpoint of the same id replaces it. Raises
    ``CheckpointMismatch`` if there is neither.
    """
    folder = kept_folder(database, model_id)
    missing = [name for name in (WEIGHTS_NAME, CARD_NAME) if not (folder / name).is_file()]
    if not missing:
        return folder
    if model_id and (same := find_bundled(model_id)) is not None:
        return same
    raise CheckpointMismatch(
        f"The checkpoint that the run used is not kept any more ({folder / missing[0]} is "
        f"missing); restore the folder {folder} beside the database."
    )


def kept_identity(database: Path, model_id: str) -> Identity | None:
    """Return the identity of *model_id* from its card beside *database*; None without one."""
    folder = kept_folder(database, model_id)
    if not (folder / CARD_NAME).is_file():
        return None
    card = read_card(folder)
    return identity(str(card["model"].get("weights_sha256")), card)


def listed(folders: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (folder, card) of every checkpoint in *folders* or one level below them."""
    for folder in folders:
        subfolders = sorted(folder.iterdir()) if folder.is_dir() else []
        for candidate in [folder, *subfolders]:
            if (candidate / CARD_NAME).is_file():
                yield candidate, read_card(candidate)


def _check_finite(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointMismatch(
                f"The tensor {name} of {folder} holds values that are not finite; train again."
            )


def _section(card: CardTable, name: str) -> Mapping[str, object]:
    section = card.get(name)
    return section if isinstance(section, Mapping) else {}


def _bytes(path: Path) -> bytes:
    if (held := _HELD.get(path)) is not None:
        return held
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointMismatch(
            f"{path} cannot be read ({error.strerror}); name a folder with {WEIGHTS_NAME} and"
            f" {CARD_NAME}."
        ) from None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
