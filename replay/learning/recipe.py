"""Everything that is chosen before training starts, as TOML and back.

A recipe has the form of a card: ``[model]``, ``[architecture]``, ``[training]``, ``[calibration]``
and ``[split]``, with what is chosen and nothing that follows. A card is a recipe with its results,
so it can be handed in as one: what follows from training is then left aside.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tracepaper.replay.learning.dataset import in_bars, intervals_of, own_interval
from tracepaper.replay.learning.splits import TrainingFile
from tracepaper.replay.learning.stored_baselines import (
    requested_names,
)
from tracepaper.storage.checkpoints import dump
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.keys import nearest
from tracepaper.strategies.units import time_of

if TYPE_CHECKING:
    from tracepaper.replay.learning.estimator import Estimator


Document = Mapping[str, Any]

_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "model": ("kind", "name"),
    "architecture": (),
    "training": ("threads", "device", "explained_bars", "baselines"),
    "calibration": ("horizon",),
    "features": ("schema_id", "intervals", "calendar"),
    "split": (
        "train_until",
        "validation_until",
        "calibration_until",
        "embargo_bars",
        "second_span",
    ),
}
"""The keys of each section that are chosen; to those of training come what fits is fitted with."""
SCHEMA: Final = "v2"
DROPOUT: Final = 0.1
THREADS: Final = 2
DEFAULT_KIND: Final = "flash"


@dataclass(frozen=True)
class Recipe:
    """What is chosen before a model is fitted; *split* may be left to the data.

    ``architecture`` and ``options`` are the ``Keys`` and ``Options`` of the estimator, of which the
    data say the rest. ``members`` are those of an ensemble.
    """

    estimator: Estimator
    architecture: Any
    options: Any
    horizon: int = 0  # of the gates; 0 where none judge
    name: str = ""
    schema_id: str = SCHEMA
    intervals: tuple[str, ...] = ()  # the model's, then others to learn from
    calendar: str | None = None
    explained_bars: int | None = None  # None: as many as can be explained in minutes
    device: str = "cpu"
    threads: int = THREADS
    split: Mapping[str, Any] | None = None
    baselines: tuple[str, ...] = ()  # of those that are fitted on request
    members: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a horizon of the gates that the model does not forecast."""
        if self.horizon and self.horizon not in self.horizons:
            raise ConfigInvalid(
                f"The gates' horizon of {self.horizon} bars is none of the model's"
                f" {list(self.horizons)}; choose one of these."
            )

    @property
    def kind(self) -> str:
        """The name of the kind of model."""
        return self.estimator.kind.name

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead that are forecast."""
        return tuple(self.architecture.horizons)

    def document(self) -> dict[str, Any]:
        """Return it as the sections of a file, every key with its value."""
        own: Any = self  # Pyright follows this module by two names
        return self.estimator.document(own)

    def text(self) -> str:
        """Return it as TOML, which ``read_recipe`` reads back to an equal recipe."""
        return dump(self.document())

    @property
    def hash(self) -> str:
        """The hash of all that was chosen: twelve hexadecimal digits.

        Seed, name, threads and device are left out: repeats of one recipe are one candidate.
        """
        if self.members:
            return _digest(" ".join(member.hash for member in self.members))
        chosen = {**self.document(), **self.estimator.fixed}
        document = {
            name: _that_count(name, section) if isinstance(section, Mapping) else section
            for name, section in {**chosen, "model": {"kind": self.kind}}.items()
        }
        return _digest(json.dumps(document, sort_keys=True, default=str))


_LUCK: Final = ("seed", "threads", "device", "explained_bars", "baselines")
"""Keys of ``[training]`` that make no other recipe."""


def _that_count(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    luck = _LUCK if name == "training" else ()
    return {key: value for key, value in section.items() if key not in luck}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def features_of(schema_id: str, intervals: Sequence[str], calendar: str | None) -> dict[str, Any]:
    """Return ``[features]`` of a recipe; intervals and calendar only where they are chosen."""
    found: dict[str, Any] = {"schema_id": schema_id}
    if intervals:
        found["intervals"] = list(intervals)
    return found if calendar is None else {**found, "calendar": calendar}


def with_bars(document: Document) -> Document:
    """Return *document* with horizons in bars, where they are text with times or bars.

    Raises ``ConfigInvalid`` where times are given and no interval is named.
    """
    architecture, calibration = document.get("architecture", {}), document.get("calibration", {})
    if not (isinstance(architecture, Mapping) and isinstance(calibration, Mapping)):
        return document  # refused by ``chosen_of``
    given, of_gates = architecture.get("horizons"), calibration.get("horizon")
    if not isinstance(given, str) and not isinstance(of_gates, str):
        return document
    features = document.get("features", {})
    interval_ms = own_interval(
        str(features.get("schema_id", SCHEMA)), intervals_of(features.get("intervals", ()))
    )
    if not interval_ms and any(time_of(text) for text in f"{given},{of_gates}".split(",")):
        raise ConfigInvalid(
            "Horizons that are times need the interval: set features.intervals, such as 15m, or a "
            "schema that names one, such as v2-15m."
        )
    if features.get("calendar") and "d" in f"{given},{of_gates or ''}".lower():
        raise ConfigInvalid(
            "A calendar of sessions counts days in bars of its own; give horizons in bars, or"
            " hours."
        )
    if isinstance(given, str):
        document = over(document, {"architecture": {"horizons": in_bars(given, interval_ms or 1)}})
    if isinstance(of_gates, str):
        bars = in_bars(of_gates, interval_ms or 1)[0]
        document = over(document, {"calibration": {"horizon": bars}})
    return document


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the document in a TOML file; raise ``ConfigInvalid`` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"The recipe {path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"The recipe {path} is not TOML ({error}); mend it.") from None


def over(document: Document, given: Document) -> dict[str, Any]:
    """Return *document* with the sections of *given* laid over it, key by key."""
    names = dict.fromkeys((*document, *given))
    return {
        name: {**document.get(name, {}), **given[name]} if name in given else document[name]
        for name in names
    }


def command(sources: Sequence[TrainingFile], given: Sequence[str] = ()) -> str:
    """Return the command that makes a checkpoint again from its card and the same files.

    *given* are the options that name what lies beside the candles.
    """
    names = [
        source.name if source.symbol in source.name else f"{source.symbol}={source.name}"
        for source in sources
    ]
    words = [word for name in names for word in ("--data", name)]
    chosen = dict.fromkeys(text for source in sources for text in source.columns)
    words += [word for text in chosen for word in ("--columns", text)]
    return shlex.join(["tracepaper", "train", "card.toml", *words, *given, "--out", "FOLDER"])


def chosen_of(document: Document, options: type[Any]) -> dict[str, dict[str, Any]]:
    """Return what is chosen, section by section, where *options* is what fits are fitted with.

    Raises ``ConfigInvalid`` for a section or a key that is none of it; what a card holds besides is
    left aside.
    """
    is_card = "weights_sha256" in document.get("model", {})
    if (unknown := sorted(set(document) - set(_SECTIONS))) and not is_card:
        raise ConfigInvalid(
            f"A recipe has no section [{unknown[0]}]{nearest(unknown[0], _SECTIONS)}; mend it."
        )
    found: dict[str, dict[str, Any]] = {}
    sections = {
        **_SECTIONS,
        "training": (*_SECTIONS["training"], *(of.name for of in fields(options))),
    }
    for name, keys in sections.items():
        section = document.get(name, {})
        if not isinstance(section, Mapping):
            raise ConfigInvalid(f"[{name}] of the recipe is no table; write it as one.")
        if keys and not is_card and (unknown := sorted(set(section) - set(keys))):
            raise ConfigInvalid(
                f"The recipe's {name}.{unknown[0]} is unknown{nearest(unknown[0], keys)}; mend it."
            )
        found[name] = {key: v for key, v in section.items() if not keys or key in keys}
    return found


def own_training(training: Document) -> dict[str, Any]:
    """Return the keys of ``[training]`` that are not what fits are fitted with."""
    return {name: training[name] for name in _SECTIONS["training"] if name in training}


def requested_baselines(training: Document) -> tuple[str, ...]:
    """Return what ``[training] baselines`` names; raise ``ConfigInvalid`` for what it cannot."""
    names = training.get("baselines", [])
    if not isinstance(names, list):
        raise ConfigInvalid('training.baselines must be a list of names, such as ["lstm"].')
    return requested_names(names)


def typed(options: type[Any], training: Document) -> Any:  # noqa: ANN401 - any dataclass of options
    """Return *options* of ``[training]``; raise ``ConfigInvalid`` for a value of another kind."""
    found: dict[str, Any] = {}
    for field in fields(options):
        if field.name not in training:
            continue
        value, default = training[field.name], field.default
        assert default is not MISSING
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
            raise ConfigInvalid(f"training.{field.name} must be {kind[type(default)]}.")
        found[field.name] = value
    return options(**found)


def middle(horizons: Sequence[int]) -> int:
    """Return the horizon that the gates judge unless another is named."""
    return horizons[len(horizons) // 2]


def whole(name: str, value: object) -> int:
    """Return *value*; raise ``ConfigInvalid`` unless it is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ConfigInvalid(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return value
