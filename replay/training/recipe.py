"""Everything that is chosen before training starts, as TOML and back.

A recipe has the form of a card: ``[model]``, ``[architecture]``, ``[training]``, ``[calibration]``
and ``[split]``, with what is chosen and nothing that follows. A card is a recipe with its results,
so it can be handed in as one: what follows from training is then left aside.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tracepaper.replay.training.boosting import BoostingOptions
from tracepaper.replay.training.fit import FitOptions
from tracepaper.replay.training.fitted import requested_names
from tracepaper.replay.training.material import in_bars, intervals_of, own_interval
from tracepaper.replay.training.series import TrainingFile
from tracepaper.storage.checkpoints import dump
from tracepaper.strategies.api.model import ModelKind
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import FeatureSchema
from tracepaper.strategies.forecasters.build import model_kinds
from tracepaper.strategies.networks.architecture import (
    Architecture,
    Network,
    kind_of,
    nearest,
    network_kinds,
)
from tracepaper.strategies.networks.flash import FlashNetwork
from tracepaper.strategies.units import MINUTE_MS, time_of

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
EXPLAINED_BARS: Final = 120_000
EXPLAINED_WINDOWS: Final = 12_000
"""Bars of calibration and test to explain, where each costs a pass over its window."""
SCHEMA: Final = "v1"
DROPOUT: Final = 0.1
THREADS: Final = 2
DEFAULT_KIND: Final = "flash"


@dataclass(frozen=True)
class Recipe:
    """What is trained, how, and on what device; *split* may be left to the data."""

    kind: ModelKind
    config: Architecture
    options: FitOptions
    horizon: int  # of the gates
    name: str = ""
    schema_id: str = SCHEMA
    intervals: tuple[str, ...] = ()  # the model's, then others to learn from
    calendar: str | None = None
    explained_bars: int | None = None  # None: as many as the network can explain in minutes
    device: str = "cpu"
    threads: int = 2
    split: Mapping[str, Any] | None = None
    baselines: tuple[str, ...] = ()  # of those that are fitted on request

    def __post_init__(self) -> None:
        """Refuse a horizon of the gates that the network does not forecast."""
        if self.horizon not in self.config.horizons:
            raise ConfigInvalid(
                f"The gates' horizon of {self.horizon} bars is none of the network's"
                f" {list(self.config.horizons)}; choose one of these."
            )

    @classmethod
    def of(cls, document: Document) -> Self:
        """Read a recipe or a card; raise ``ConfigInvalid`` for a key or a value it cannot have."""
        chosen = chosen_of(document, FitOptions)
        model, own = chosen["model"], own_training(chosen["training"])
        kind = _kind(model.get("kind", DEFAULT_KIND))
        config = _architecture(kind, chosen["architecture"])
        horizon = chosen["calibration"].get("horizon", middle(config.horizons))
        return cls(
            kind,
            config,
            typed(FitOptions, chosen["training"]),
            whole("calibration.horizon", horizon),
            name=str(model.get("name", "")),
            schema_id=str(chosen["features"].get("schema_id", SCHEMA)),
            intervals=tuple(chosen["features"].get("intervals", ())),
            calendar=chosen["features"].get("calendar"),
            explained_bars=own.get("explained_bars"),
            device=str(own.get("device", "cpu")),
            threads=whole("training.threads", own.get("threads", THREADS)),
            split=chosen["split"] or None,
            baselines=requested_baselines(own),
        )

    def fitted_to(self, schema: FeatureSchema, interval_ms: int) -> Self:
        """Return it with a network for rows of that *schema* and bars of that length."""
        known = {"features": len(schema.names), "interval_minutes": interval_ms // MINUTE_MS}
        section = listed(self.config)
        own = {name: value for name, value in known.items() if name in section}
        own |= self.kind.by_names(section, schema.names)
        return replace(self, config=self.kind.read({**section, **own}))

    def document(self) -> dict[str, Any]:
        """Return it as the sections of a file, every key with its value."""
        training = asdict(self.options) | {"threads": self.threads, "device": self.device}
        training |= with_baselines(self.baselines)
        if self.explained_bars is not None:
            training["explained_bars"] = self.explained_bars
        found: dict[str, Any] = {
            "model": {"kind": self.kind.name, "name": self.name},
            "architecture": listed(self.config),
            "features": features_of(self.schema_id, self.intervals, self.calendar),
            "training": training,
            "calibration": {"horizon": self.horizon},
        }
        return found if self.split is None else {**found, "split": dict(self.split)}

    def text(self) -> str:
        """Return it as TOML, which ``read_recipe`` reads back to an equal recipe."""
        return dump(self.document())

    def bars_explained(self, network: Network) -> int:
        """Return how many bars of calibration and test are explained."""
        return explained(network) if self.explained_bars is None else self.explained_bars


def explained(network: Network) -> int:
    """Return how many bars can be explained in minutes."""
    streams = isinstance(network, FlashNetwork) and network.answers_every_row
    return EXPLAINED_BARS if streams else EXPLAINED_WINDOWS


def listed(config: Architecture) -> dict[str, Any]:
    """Return every field of an architecture, tuples as lists, as a card holds it."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}  # type: ignore[arg-type]
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


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
    given, of_gates = architecture.get("horizons"), calibration.get("horizon")
    if not isinstance(given, str) and not isinstance(of_gates, str):
        return document
    features = document.get("features", {})
    interval_ms = own_interval(
        str(features.get("schema_id", SCHEMA)), intervals_of(features.get("intervals", ()))
    )
    if not interval_ms and any(time_of(text) for text in f"{given},{of_gates}".split(",")):
        raise ConfigInvalid(
            "Horizons that are times need the interval: give --interval, such as 15m, or a schema"
            " that names one, such as v2-15m."
        )
    if features.get("calendar") and "d" in f"{given},{of_gates or ''}".lower():
        raise ConfigInvalid(
            "A calendar of sessions counts days in bars of its own; give --horizons in bars, or"
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
        raise ConfigInvalid(f"--recipe {path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"--recipe {path} is not TOML ({error}); mend it.") from None


def over(document: Document, given: Document) -> dict[str, Any]:
    """Return *document* with the sections of *given* laid over it, key by key."""
    names = dict.fromkeys((*document, *given))
    return {
        name: {**document.get(name, {}), **given[name]} if name in given else document[name]
        for name in names
    }


def command(sources: Sequence[TrainingFile], vectors: str | None = None) -> str:
    """Return the command that makes a checkpoint again from its card and the same files."""
    names = [
        source.name if source.symbol in source.name else f"{source.symbol}={source.name}"
        for source in sources
    ]
    words = [word for name in names for word in ("--data", name)]
    words += [] if vectors is None else ["--covariates", vectors]
    return shlex.join(["tracepaper", "train", "--recipe", "card.toml", *words, "--out", "FOLDER"])


def _architecture(kind: ModelKind, section: Document) -> Architecture:
    """Return the configuration; where no dropout is named, the one that networks are trained with.

    A card that names none was made without, so it is no default of the network's own.
    """
    section = {name: value for name, value in section.items() if name not in kind.follows}
    config: Architecture = kind.read(section)
    if "dropout" in section or not hasattr(config, "dropout"):
        return config
    return kind.read({**section, "dropout": DROPOUT})


def _kind(name: object) -> ModelKind:
    if name not in network_kinds():
        every = [
            f"{kind.name}, {kind.summary}" for kind in model_kinds().values() if not kind.members
        ]
        raise ConfigInvalid(
            f"There is no network called {name!r}; choose one of: {'; '.join(every)}."
        )
    return kind_of(name)


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
    sections = {**_SECTIONS, "training": (*_SECTIONS["training"], *_names(options))}
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


def _names(options: type[Any]) -> list[str]:
    return [field.name for field in fields(options)]


def own_training(training: Document) -> dict[str, Any]:
    """Return the keys of ``[training]`` that are not what fits are fitted with."""
    return {name: training[name] for name in _SECTIONS["training"] if name in training}


def requested_baselines(training: Document) -> tuple[str, ...]:
    """Return what ``[training] baselines`` names; raise ``ConfigInvalid`` for what it cannot."""
    names = training.get("baselines", [])
    if not isinstance(names, list):
        raise ConfigInvalid('training.baselines must be a list of names, such as ["lstm"].')
    return requested_names(names)


def with_baselines(names: Sequence[str]) -> dict[str, Any]:
    """Return the key of ``[training]`` that names them; none where none is named."""
    return {"baselines": list(names)} if names else {}


AnyOptions = TypeVar("AnyOptions", FitOptions, BoostingOptions)


def typed(options: type[AnyOptions], training: Document) -> AnyOptions:
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
