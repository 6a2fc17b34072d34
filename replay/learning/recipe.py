"""Recipes, which hold every choice before training, as TOML and back; and kinds of models.

A ``Kind`` is registered by a module of ``estimators``; no other module asks for a kind. A card is a
recipe with results, and can be read as a recipe.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from msgspec import Meta

from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.dataset import in_bars, intervals_of, own_interval
from tracepaper.replay.learning.fitted import FitRun, FittedModel
from tracepaper.storage.checkpoints import dump
from tracepaper.strategies.api.model import DataSource, ModelKind, Registry, no_network
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import MEMBERS, model_kinds
from tracepaper.strategies.forecasters.tabular import ENSEMBLE, ROW_KINDS
from tracepaper.strategies.networks.keys import (
    TEXT,
    Key,
    checked,
    checked_section,
    keys_of,
    listed,
    nearest,
)
from tracepaper.strategies.units import DAY_MS, time_of

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.replay.learning.fit import Fit


Document = Mapping[str, Any]
Section = Mapping[str, Key]
Chosen = Mapping[str, Mapping[str, Any]]
"""The chosen values, by section and key."""

SCHEMA: Final = "v2"
DROPOUT: Final = 0.1
THREADS: Final = 2
DEFAULT_KIND: Final = "flash"


# --- the shared sections of recipes


@dataclass(frozen=True)
class _Model:
    kind: Annotated[str, Meta(description="Kind of model; ? lists all.")] = DEFAULT_KIND
    name: Annotated[str, Meta(description="Name on the card; empty: the folder's.")] = ""


@dataclass(frozen=True)
class _Features:
    schema_id: Annotated[
        str,
        Meta(description="Feature schema: v2, tree or macd; or of one interval, such as v2-15m."),
    ] = SCHEMA
    intervals: Annotated[
        tuple[str, ...],
        Meta(description="Interval of the model, then others to train on: 15m,5m,1h."),
    ] = ()
    asset: (
        Annotated[Literal["stock"], Meta(description="stock if the files are of shares.")] | None
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
    second_holdout: (
        Annotated[
            str,
            Meta(description="Start of the second holdout (date); unset: the test set is halved."),
        ]
        | None
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
    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = THREADS


# --- kinds


@dataclass(frozen=True)
class Kind:
    """A kind of model: the keys of its recipe, and how it is fitted and loaded."""

    model: ModelKind
    Keys: type[Any]
    """The dataclass of ``[architecture]``, which names the ``horizons``."""
    Options: type[Any]
    """The dataclass of ``[training]``."""
    fit: Callable[[Any, Recipe, FitRun], FittedModel]
    """Data and recipe → the fitted model, not yet calibrated."""
    load: Callable[[Document, Mapping[str, Tensor]], FittedModel]
    """Card and tensors of a checkpoint → its model; raises ``CheckpointMismatch``."""
    architecture: Callable[[ModelKind, Chosen], Any] | None = None
    """All chosen sections → the ``Keys``; None if only their own section matters."""
    listed: Callable[[Any], dict[str, Any]] = listed
    """The ``Keys`` → ``[architecture]`` of a recipe."""
    shared: Sequence[str] = ("threads", "device", "explained_bars")
    """Keys of ``[training]`` besides those of ``Options``, in the order of a recipe."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Replaces defaults of ``Options``."""
    explained_bars: int | None = None
    """The default number of bars to explain; None is as many as a few minutes allow."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Sections that the hash of a recipe covers but no recipe chooses."""
    needs: Callable[[str], object] = lambda _: None
    """Raises ``ConfigInvalid``, with the option's name, if an optional package is missing."""
    joins_rows: bool = False
    """Whether an ensemble may join it with a model of rows."""
    make: Callable[[Any], Any] | None = None
    """The ``Keys`` → its network; None for that of ``model``."""
    learn: Callable[..., Fit] = no_network
    """Network, data, options, folder and facts → the fit of the network."""

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        """Pickle the name only: each process registers the kinds."""
        return _registered, (self.name,)

    def network(self, config: Any) -> Any:  # noqa: ANN401 - of the kind
        """Return the untrained network of *config*."""
        return (self.make or self.model.make)(config)

    @property
    def name(self) -> str:
        """The ``[model] kind`` of a card."""
        return self.model.name

    @cached_property
    def sections(self) -> Mapping[str, Section]:
        """Every key of a recipe, by section."""
        shared = keys_of(_Training)
        sections: dict[str, Section] = {
            "model": keys_of(_Model),
            "architecture": keys_of(self.Keys),
            "training": keys_of(self.Options) | {name: shared[name] for name in self.shared},
        }
        if self.model.source == DataSource.ORDER_BOOKS:
            return sections
        features = keys_of(_Features)
        if self.model.source == DataSource.CLOSES:
            del features["asset"]
        sections |= {
            "features": features,
            "calibration": keys_of(_Calibration),
            "split": keys_of(_Split),
        }
        if self.joins_rows:
            sections[ENSEMBLE] = keys_of(_Ensemble) | keys_of(BoostingOptions)
        return sections

    def recipe(self, document: Document) -> Recipe:
        """Read a recipe or a card; raise ``ConfigInvalid`` for an invalid key or value."""
        if self.model.members:
            return _recipe_of_members(self, document)
        document = with_bars(document) if "features" in self.sections else document
        chosen = self._chosen(document)
        section, features = chosen["architecture"], chosen.get("features", {})
        if self.architecture is None:
            keys = self.Keys(**checked_section(self.Keys, section))
        else:
            keys = self.architecture(self.model, chosen)
        training, declared = chosen["training"], keys_of(self.Options)
        options = self.Options(
            **{
                name: checked(declared[name], value, "training")
                for name, value in {**self.defaults, **training}.items()
                if name in declared
            }
        )
        horizon: Any = 0
        if "calibration" in chosen:
            default = getattr(keys, "every", keys.horizons[len(keys.horizons) // 2])
            value = chosen["calibration"].get("horizon", default)
            horizon = checked(self.sections["calibration"]["horizon"], value, "calibration")
        key = keys_of(_Training)["threads"]
        threads: Any = checked(key, training.get("threads", THREADS), "training")
        return Recipe(
            self,
            keys,
            options,
            horizon,
            name=str(chosen["model"].get("name", "")),
            schema_id=str(features.get("schema_id", SCHEMA)),
            intervals=tuple(features.get("intervals", ())),
            asset=features.get("asset"),
            explained_bars=training.get("explained_bars") or self.explained_bars,
            device=str(training.get("device", "cpu")),
            threads=threads,
            split=chosen.get("split") or None,
        )

    def document(self, recipe: Recipe) -> dict[str, Any]:
        """Return *recipe* as the sections of a file, every key with its value."""
        if recipe.members:
            network, rows = recipe.members
            section = {"kind": rows.kind.name, "schema_id": rows.schema_id, **asdict(rows.options)}
            return {**network.document(), ENSEMBLE: {**section, "threads": rows.threads}}
        sections: dict[str, Any] = {
            "model": {"kind": self.name, "name": recipe.name},
            "architecture": self.listed(recipe.architecture),
            "features": _set(recipe, ("schema_id", "intervals", "asset")),
            "training": {**asdict(recipe.options), **self.shared_training(recipe)},
            "calibration": {"horizon": recipe.horizon},
            "split": dict(recipe.split or {}),
        }
        return {name: keys for name, keys in sections.items() if keys and name in self.sections}

    def shared_training(self, recipe: Recipe) -> dict[str, Any]:
        """Return the ``shared`` keys of ``[training]`` that are set."""
        return _set(recipe, self.shared)

    def _chosen(self, document: Document) -> dict[str, dict[str, Any]]:
        """Return the choices by section, without the results of a card.

        Raises ``ConfigInvalid`` for an unknown section or key.
        """
        is_card = "weights_sha256" in document.get("model", {})
        sections = {name: keys for name, keys in self.sections.items() if name != ENSEMBLE}
        if (unknown := sorted(set(document) - set(sections))) and not is_card:
            raise ConfigInvalid(
                f"A recipe of the kind {self.name} has no section "
                f"[{unknown[0]}]{nearest(unknown[0], sections)}; correct it."
            )
        chosen: dict[str, dict[str, Any]] = {}
        for name, keys in sections.items():
            section = document.get(name, {})
            if name == "architecture":  # the kind checks it: a card has keys from the data too
                chosen[name] = dict(section)
                continue
            if not is_card and (unknown := sorted(set(section) - set(keys))):
                raise ConfigInvalid(
                    f"The recipe's {name}.{unknown[0]} is unknown{nearest(unknown[0], keys)}; "
                    "correct it."
                )
            chosen[name] = {key: value for key, value in section.items() if key in keys}
        return chosen


_KINDS: Final[Registry[Kind]] = Registry()


def register(kind: Kind) -> Kind:
    """Register *kind*; raise ``ConfigInvalid`` if its name is taken."""
    return _KINDS.add(kind.name, kind)


def kinds() -> Mapping[str, Kind]:
    """Return every kind that a recipe can name, in the order of ``model_kinds``."""
    return {name: kind for name, kind in _every_kind().items() if not kind.model.members}


def _every_kind() -> Mapping[str, Kind]:
    from tracepaper.replay.learning import estimators

    registered = _KINDS.of(estimators)
    return {name: registered[name] for name in model_kinds() if name in registered}


def _registered(name: str) -> Kind:
    return _every_kind()[name]


def kind_of(document: Document, *, is_member: bool = False) -> Kind:
    """Return the kind of a recipe or a card; raise ``ConfigInvalid`` for an unknown one.

    With *is_member*, an ensemble's document gives the kind of its network.
    """
    if not is_member and {ENSEMBLE, "parts"} & document.keys():
        return _every_kind()[ENSEMBLE]
    model, registered = document.get("model", {}), kinds()
    name = str(model.get("kind", DEFAULT_KIND))
    if name not in registered:
        raise ConfigInvalid(
            f"There is no kind of model called {name!r}{nearest(name, registered)}; "
            "`tracepaper train --init ?` lists them."
        )
    return registered[name]


def recipe_of(document: Document) -> Recipe:
    """Read a recipe or a card of any kind; raise ``ConfigInvalid`` for an invalid one."""
    return kind_of(document).recipe(document)


def as_recipe(document: Document) -> Document:
    """Return *document* with the sections of a recipe; only an ensemble's card needs conversion."""
    return recipe_of(document).document() if "parts" in document else document


@dataclass(frozen=True)
class Recipe:
    """The choices before a model is fitted; without *split* the data are split by shares.

    ``architecture`` and ``options`` are the kind's ``Keys`` and ``Options``; the data complete
    them. ``members`` are those of an ensemble.
    """

    kind: Kind
    architecture: Any
    options: Any
    horizon: int = 0  # of the gates; 0 for a kind without gates
    name: str = ""
    schema_id: str = SCHEMA
    intervals: tuple[str, ...] = ()  # the model's, then others for training
    asset: str | None = None  # stock, if the files' names do not say it
    explained_bars: int | None = None  # None: as many as a few minutes allow
    device: str = "cpu"
    threads: int = THREADS
    split: Mapping[str, Any] | None = None
    members: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for a horizon of the gates that the model does not forecast."""
        if self.horizon and self.horizon not in self.horizons:
            raise ConfigInvalid(
                f"The gates' horizon of {self.horizon} bars is none of the model's"
                f" {list(self.horizons)}; choose one of these."
            )

    @property
    def horizons(self) -> tuple[int, ...]:
        """The forecast horizons in bars."""
        return tuple(self.architecture.horizons)

    def check(self, option: str) -> None:
        """Raise ``ConfigInvalid``, which names *option*, if an optional package is missing."""
        for each in self.members or (self,):
            each.kind.needs(option)

    def document(self) -> dict[str, Any]:
        """Return the recipe as the sections of a file, every key with its value."""
        return self.kind.document(self)

    @property
    def hash(self) -> str:
        """The hash of the choices: twelve hexadecimal digits.

        Seed, name, threads and device are left out, so that repeats of one recipe are equal.
        """
        if self.members:
            return _digest(" ".join(member.hash for member in self.members))
        document = {**self.document(), **self.kind.fixed, "model": {"kind": self.kind.name}}
        training = document["training"]
        document["training"] = {key: training[key] for key in training if key not in _UNHASHED}
        return _digest(json.dumps(document, sort_keys=True, default=str))


_UNHASHED: Final = ("seed", "threads", "device", "explained_bars")
"""Keys of ``[training]`` that do not change the hash."""


def _set(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Return the values of *names* that are set, tuples as lists."""
    values = {name: getattr(recipe, name) for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, ())
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_bars(document: Document) -> Document:
    """Return *document* with horizons that are text, such as ``5m,30``, as numbers of bars.

    Raises ``ConfigInvalid`` for times without an interval.
    """
    architecture, calibration = document.get("architecture", {}), document.get("calibration", {})
    horizons, of_gates = architecture.get("horizons"), calibration.get("horizon")
    if not isinstance(horizons, str) and not isinstance(of_gates, str):
        return document
    features = document.get("features", {})
    interval_ms = own_interval(
        str(features.get("schema_id", SCHEMA)), intervals_of(features.get("intervals", ()))
    )
    if not interval_ms and any(time_of(text) for text in f"{horizons},{of_gates}".split(",")):
        raise ConfigInvalid(
            "Horizons that are times need the interval: set features.intervals, such as 15m, or a "
            "schema that names one, such as v2-15m."
        )
    is_short = interval_ms < DAY_MS
    if features.get("asset") and is_short and "d" in f"{horizons},{of_gates or ''}".lower():
        raise ConfigInvalid(
            "A day of a share has no fixed number of bars; give horizons in bars or hours."
        )
    if isinstance(horizons, str):
        bars_ahead = in_bars(horizons, interval_ms or 1)
        document = over(document, {"architecture": {"horizons": bars_ahead}})
    if isinstance(of_gates, str):
        bars = in_bars(of_gates, interval_ms or 1)[0]
        document = over(document, {"calibration": {"horizon": bars}})
    return document


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the tables in a TOML file; raise ``ConfigInvalid`` if it cannot be read."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(f"The recipe {path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"The recipe {path} is not TOML ({error}); correct it.") from None
    return tables_of(document)


def tables_of(document: Document) -> dict[str, Any]:
    """Return *document*; raise ``ConfigInvalid`` unless it is all tables."""
    for name, section in document.items():
        if not isinstance(section, Mapping):
            raise ConfigInvalid(f"[{name}] of the recipe is no table; write it as one.")
    return dict(document)


def over(document: Document, changes: Document) -> dict[str, Any]:
    """Return *document* with the keys of *changes* replaced, section by section."""
    names = dict.fromkeys((*document, *changes))
    return {
        name: {**document.get(name, {}), **changes[name]} if name in changes else document[name]
        for name in names
    }


# --- an ensemble: the recipes of a network and a model of rows


def member_as_card(card: Document, name: str) -> dict[str, Any]:
    """Return the member *name* of an ensemble's card as a card."""
    part = card["parts"][name]
    return {**part, "model": {"weights_sha256": "", **part["model"]}}


def _recipe_of_members(kind: Kind, document: Document) -> Recipe:
    """Read a recipe with ``[ensemble]``, or the card of an ensemble."""
    if "parts" in document:
        first, second = (member_as_card(document, name) for name in MEMBERS)
        first["model"]["name"] = document["model"].get("name", "")
        network, rows = recipe_of(first), recipe_of(second)
    else:
        chosen = dict(document[ENSEMBLE])
        network = recipe_of({name: keys for name, keys in document.items() if name != ENSEMBLE})
        shared, name = network.document(), chosen.pop("kind", "tree")
        if name not in ROW_KINDS:
            raise ConfigInvalid(
                f"An ensemble is a network with one of {', '.join(ROW_KINDS)}, not with {name!r}; "
                "choose one of these."
            )
        schema_id = chosen.pop("schema_id", network.schema_id)
        rows = recipe_of(
            {
                "model": {"kind": name, "name": network.name},
                "architecture": {"horizons": list(network.horizons)},
                "features": {**shared["features"], "schema_id": schema_id},
                "training": {"threads": network.threads, **chosen},
                "calibration": shared["calibration"],
                "split": shared.get("split", {}),
            }
        )
    return replace(network, kind=kind, members=(network, rows))


# --- settings over a recipe


ARCHITECTURE: Final = "architecture"
_TIMED: Final = (("architecture", "horizons"), ("calibration", "horizon"))
"""Keys that take times such as 4h as well as numbers of bars."""
_DATES: Final = ("train_until", "validation_until", "calibration_until")


class KeyValue(NamedTuple):
    """``--set SECTION.KEY=VALUE``; the default section is the architecture."""

    text: str
    section: str
    key: str
    value: str

    @classmethod
    def read(cls, text: str) -> KeyValue:
        """Parse *text*; raise ``ConfigInvalid`` if it sets no key."""
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().rpartition(".")
        if not equals or not key or (dot and not section):
            raise ConfigInvalid(
                f"--set {text} sets no key; write one such as encoding=alibi, "
                "clock=week,funding or training.steps=500."
            )
        return cls(text, section or ARCHITECTURE, key, value.strip())

    def typed(self, sections: Mapping[str, Section], owner: str) -> object:
        """Return the value with its key's type in *sections*; *owner* names these in errors.

        A list is written with commas or as TOML, a number or a flag as TOML, text as itself. Raises
        ``ConfigInvalid`` for an unknown key, for one that training takes from the data and for a
        value out of range.
        """
        section = sections.get(self.section)
        if section is None:
            raise ConfigInvalid(
                f"--set {self.text}: {owner} has no section "
                f"[{self.section}]{nearest(self.section, sections)}."
            )
        key = section.get(self.key)
        chosen = [name for name, other in section.items() if not other.derived]
        if key is None:
            raise ConfigInvalid(
                f"--set {self.text}: {owner} has no "
                f"{self.section}.{self.key}{nearest(self.key, chosen)}."
            )
        if key.derived:
            raise ConfigInvalid(
                f"--set {self.text}: {self.section}.{self.key} follows from the data; leave it out."
            )
        value = _value(key, self.value)
        timed = (self.section, self.key) in _TIMED and "features" in sections
        parts = value if isinstance(value, list) else [value]
        if timed and any(isinstance(part, str) for part in parts):
            return ",".join(map(str, parts))
        checked(key, value, self.section)
        return value


def _value(key: Key, text: str) -> object:
    if not key.is_list:
        return _scalar(key, text)
    if text.startswith("["):
        return _toml(text)
    return [_scalar(key, part.strip()) for part in text.split(",") if part.strip()]


def _scalar(key: Key, text: str) -> object:
    value = _toml(text)
    # TOML would read the texts 5 and 2025-01-01 as a number and a date.
    return text if key.type == TEXT and not isinstance(value, str) else value


def _toml(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_settings(document: Document, texts: Sequence[str]) -> dict[str, Any]:
    """Return *document* with each setting ``SECTION.KEY=VALUE`` of *texts*.

    Raises ``ConfigInvalid`` for a key or a value that a recipe of its kind cannot have.
    """
    settings = [KeyValue.read(text) for text in texts]
    for setting in settings:  # the kind first, as it determines the other keys
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
    """The options ``evaluation.KEY`` of ``evaluate``."""

    threads: Annotated[int, Meta(ge=1, description="PyTorch threads.")] = THREADS
    explained_bars: (
        Annotated[int, Meta(ge=500, description="Bars to explain for the gates; takes minutes.")]
        | None
    ) = None


def evaluation_options(texts: Sequence[str]) -> tuple[EvaluationOptions, list[str]]:
    """Return the options that *texts* set as ``evaluation.KEY=VALUE``, and the other texts."""
    prefix = "evaluation."
    settings = [KeyValue.read(text) for text in texts if text.startswith(prefix)]
    sections = {"evaluation": keys_of(EvaluationOptions)}
    values: dict[str, Any] = {each.key: each.typed(sections, "evaluate") for each in settings}
    return EvaluationOptions(**values), [text for text in texts if not text.startswith(prefix)]


# --- a recipe as a file


def commented(document: Document, kind: Kind) -> str:
    """Return a recipe's *document* as TOML with the description of each key above it.

    Unset keys are comments at the end of their section; sections without a set key are comments at
    the end of the file.
    """
    blocks = []
    for name in dict.fromkeys((*document, *kind.sections)):
        section, values = kind.sections[name], document.get(name, {})
        lines = [f"[{name}]" if values else f"# [{name}]"]
        for key, value in values.items():
            lines += [_comment(section[key]), dump({key: value}).rstrip()]
        unset = (key for key in section.values() if key.name not in values and not key.derived)
        lines += [line for key in unset for line in (_comment(key), f"# {key.name} =")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _comment(key: Key) -> str:
    return f"# {key.text.removesuffix('.')}{f' ({key.range})' if key.range else ''}."
