"""Everything that is chosen before training starts, as TOML and back; and the kinds that choose it.

A kind of model is a record, ``Kind``, registered by a module of ``estimators``; no other module
asks for a kind. A card is a recipe with its results: handed in as one, these are left aside.

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
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from msgspec import Meta

from tracepaper.replay.learning.boosting import BoostingOptions
from tracepaper.replay.learning.dataset import in_bars, intervals_of, own_interval
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
from tracepaper.strategies.units import time_of

if TYPE_CHECKING:
    from torch import Tensor

    from tracepaper.replay.learning.fit import Fit
    from tracepaper.replay.learning.fitted import FitRun, FittedModel


Document = Mapping[str, Any]
Section = Mapping[str, Key]
Chosen = Mapping[str, Mapping[str, Any]]
"""What is chosen, section by section."""

SCHEMA: Final = "v2"
DROPOUT: Final = 0.1
THREADS: Final = 2
DEFAULT_KIND: Final = "flash"


# --- the sections of a recipe that kinds share


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
        Annotated[str, Meta(description="For shares: the exchange's calendar, such as XNAS.")]
        | None
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
    """A kind of model: what its recipe may choose, and how it is fitted and loaded."""

    model: ModelKind
    Keys: type[Any]
    """The dataclass of ``[architecture]``, which names the ``horizons``."""
    Options: type[Any]
    """The dataclass of ``[training]``."""
    fit: Callable[[Any, Recipe, FitRun], FittedModel]
    """Data and recipe → what was fitted, not yet calibrated."""
    load: Callable[[Document, Mapping[str, Tensor]], FittedModel]
    """Card and tensors → what a checkpoint holds; raises ``CheckpointMismatch``."""
    architecture: Callable[[ModelKind, Chosen], Any] | None = None
    """What is chosen → the ``Keys``; None where they follow from their section alone."""
    listed: Callable[[Any], dict[str, Any]] = listed
    """The ``Keys`` → ``[architecture]`` of a recipe."""
    shared: Sequence[str] = ("threads", "device", "explained_bars")
    """Keys of ``[training]`` that are not those of ``Options``, in the order of a recipe."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of ``[training]`` in place of those of ``Options``."""
    explained_bars: int | None = None
    """Bars to explain where none are chosen; None is as many as can be in minutes."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Sections that no recipe chooses and its hash covers."""
    needs: Callable[[str], object] = lambda _: None
    """Raises ``ConfigInvalid``, with what asked for it, where an optional package is missing."""
    suits: Callable[[Recipe, Any], object] = lambda _recipe, _data: None
    """Raises ``ConfigInvalid`` where its data cannot give what a recipe chooses."""
    walks_only: bool = True
    """Whether it is fitted on few folds that walk, for each costs a training."""
    joins_rows: bool = False
    """Whether an ensemble may join it with a model of rows."""
    holds_out_calibration: bool = False
    """Whether a fold needs a part of its own to calibrate on."""
    make: Callable[[Any], Any] | None = None
    """The ``Keys`` → its network; None for that of ``model``."""
    learn: Callable[..., Fit] = no_network
    """A network, data, options, folder and facts → the fit of what is a network."""

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        """Pickle its name: each process has the kinds that are registered."""
        return _registered, (self.name,)

    def network(self, config: Any) -> Any:  # noqa: ANN401 - of the kind
        """Return its untrained network of that configuration."""
        return (self.make or self.model.make)(config)

    @property
    def name(self) -> str:
        """The name that a card gives as ``[model] kind``."""
        return self.model.name

    @cached_property
    def sections(self) -> Mapping[str, Section]:
        """Every key of its recipe by section."""
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
            del features["calendar"]
        sections |= {
            "features": features,
            "calibration": keys_of(_Calibration),
            "split": keys_of(_Split),
        }
        if self.joins_rows:
            sections[ENSEMBLE] = keys_of(_Ensemble) | keys_of(BoostingOptions)
        return sections

    def recipe(self, document: Document) -> Recipe:
        """Read a recipe or a card; raise ``ConfigInvalid`` for a key or a value it cannot have."""
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
            usual = getattr(keys, "every", keys.horizons[len(keys.horizons) // 2])
            given = chosen["calibration"].get("horizon", usual)
            horizon = checked(self.sections["calibration"]["horizon"], given, "calibration")
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
            calendar=features.get("calendar"),
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
            "features": _set(recipe, ("schema_id", "intervals", "calendar")),
            "training": {**asdict(recipe.options), **self.shared_training(recipe)},
            "calibration": {"horizon": recipe.horizon},
            "split": dict(recipe.split or {}),
        }
        return {name: of for name, of in sections.items() if of and name in self.sections}

    def shared_training(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys of ``[training]`` that are not those of ``Options``, where chosen."""
        return _set(recipe, self.shared)

    def _chosen(self, document: Document) -> dict[str, dict[str, Any]]:
        """Return the choices, section by section, without the rest of a card.

        Raises ``ConfigInvalid`` for a section or a key that is none of it.
        """
        is_card = "weights_sha256" in document.get("model", {})
        sections = {name: keys for name, keys in self.sections.items() if name != ENSEMBLE}
        if (unknown := sorted(set(document) - set(sections))) and not is_card:
            raise ConfigInvalid(
                f"A recipe of the kind {self.name} has no section "
                f"[{unknown[0]}]{nearest(unknown[0], sections)}; mend it."
            )
        chosen: dict[str, dict[str, Any]] = {}
        for name, keys in sections.items():
            section = document.get(name, {})
            if not isinstance(section, Mapping):
                raise ConfigInvalid(f"[{name}] of the recipe is no table; write it as one.")
            if name == "architecture":  # read by its kind, which knows what follows from the data
                chosen[name] = dict(section)
                continue
            if not is_card and (unknown := sorted(set(section) - set(keys))):
                raise ConfigInvalid(
                    f"The recipe's {name}.{unknown[0]} is unknown{nearest(unknown[0], keys)}; mend "
                    "it."
                )
            chosen[name] = {key: value for key, value in section.items() if key in keys}
        return chosen


_KINDS: Final[Registry[Kind]] = Registry()


def register(kind: Kind) -> Kind:
    """Make *kind* known; raise ``ConfigInvalid`` for a name that is taken."""
    return _KINDS.add(kind.name, kind)


def kinds() -> Mapping[str, Kind]:
    """Return every kind that a recipe can name, in the order of ``model_kinds``."""
    return {name: kind for name, kind in _every_kind().items() if not kind.model.members}


def _every_kind() -> Mapping[str, Kind]:
    from tracepaper.replay.learning import estimators as room

    registered = _KINDS.of(room)
    return {name: registered[name] for name in model_kinds() if name in registered}


def _registered(name: str) -> Kind:
    return _every_kind()[name]


def kind_of(document: Document, *, is_member: bool = False) -> Kind:
    """Return the kind of a recipe or a card; raise ``ConfigInvalid`` for an unknown one.

    With *is_member* it is that of the network of an ensemble.
    """
    if not is_member and {ENSEMBLE, "parts"} & document.keys():
        return _every_kind()[ENSEMBLE]
    model, registered = document.get("model", {}), kinds()
    name = model.get("kind", DEFAULT_KIND) if isinstance(model, Mapping) else DEFAULT_KIND
    if not isinstance(name, str) or name not in registered:
        raise ConfigInvalid(
            f"There is no kind of model called {name!r}{nearest(str(name), registered)}; "
            "`tracepaper train --init ?` says what each is."
        )
    return registered[name]


def recipe_of(document: Document) -> Recipe:
    """Read a recipe or a card of any kind; raise ``ConfigInvalid`` for what it cannot have."""
    return kind_of(document).recipe(document)


def as_recipe(document: Document) -> Document:
    """Return a document whose sections can be laid over: the card of an ensemble as its recipe."""
    return recipe_of(document).document() if "parts" in document else document


@dataclass(frozen=True)
class Recipe:
    """What is chosen before a model is fitted; *split* may be left to the data.

    ``architecture`` and ``options`` are the ``Keys`` and ``Options`` of the kind, of which the data
    say the rest. ``members`` are those of an ensemble.
    """

    kind: Kind
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
    members: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a horizon of the gates that the model does not forecast."""
        if self.horizon and self.horizon not in self.horizons:
            raise ConfigInvalid(
                f"The gates' horizon of {self.horizon} bars is none of the model's"
                f" {list(self.horizons)}; choose one of these."
            )

    @property
    def horizons(self) -> tuple[int, ...]:
        """Bars ahead that are forecast."""
        return tuple(self.architecture.horizons)

    def check(self, option: str) -> None:
        """Raise ``ConfigInvalid``, which names *option*, where an optional package is missing."""
        for each in self.members or (self,):
            each.kind.needs(option)

    def document(self) -> dict[str, Any]:
        """Return it as the sections of a file, every key with its value."""
        return self.kind.document(self)

    @property
    def hash(self) -> str:
        """The hash of all that was chosen: twelve hexadecimal digits.

        Seed, name, threads and device are left out: repeats of one recipe are one candidate.
        """
        if self.members:
            return _digest(" ".join(member.hash for member in self.members))
        document = {**self.document(), **self.kind.fixed, "model": {"kind": self.kind.name}}
        training = document["training"]
        document["training"] = {key: training[key] for key in training if key not in _LUCK}
        return _digest(json.dumps(document, sort_keys=True, default=str))


_LUCK: Final = ("seed", "threads", "device", "explained_bars")
"""Keys of ``[training]`` that make no other recipe."""


def _set(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Return the chosen values of *names*, tuples as lists."""
    values = {name: getattr(recipe, name) for name in names}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, ())
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def with_bars(document: Document) -> Document:
    """Return *document* with horizons in bars, where they are text with times or bars.

    Raises ``ConfigInvalid`` where times are given and no interval is named.
    """
    architecture, calibration = document.get("architecture", {}), document.get("calibration", {})
    if not (isinstance(architecture, Mapping) and isinstance(calibration, Mapping)):
        return document  # refused by ``Kind.recipe``
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


# --- an ensemble: the recipe of a network, and of a model of rows beside it


def member_as_card(card: Document, name: str) -> dict[str, Any]:
    """Return the part of an ensemble's card as a recipe: a card with its results."""
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
        network = recipe_of({name: of for name, of in document.items() if name != ENSEMBLE})
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


# --- a recipe as a file: ``--set`` over it, and every key with its text


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
    settings = [KeyValue.read("--set", text) for text in texts if text.startswith(prefix)]
    sections = {"evaluation": keys_of(EvaluationOptions)}
    values: dict[str, Any] = {each.key: each.typed(sections, "evaluate") for each in settings}
    return EvaluationOptions(**values), [text for text in texts if not text.startswith(prefix)]


# --- to what is read


def commented(document: Document, kind: Kind) -> str:
    """Return a recipe's *document* as TOML with the text of each key above it.

    Keys that are not set stand at the end of their section, and sections without one at the end
    of the text, as comments.
    """
    blocks = []
    for name in dict.fromkeys((*document, *kind.sections)):
        section, given = kind.sections[name], document.get(name, {})
        lines = [f"[{name}]" if given else f"# [{name}]"]
        for key, value in given.items():
            lines += [_comment(section[key]), dump({key: value}).rstrip()]
        unset = (key for key in section.values() if key.name not in given and not key.derived)
        lines += [line for key in unset for line in (_comment(key), f"# {key.name} =")]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _comment(key: Key) -> str:
    return f"# {key.text.removesuffix('.')}{f' ({key.range})' if key.range else ''}."
