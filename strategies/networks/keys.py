"""The keys of a recipe as annotated fields: each has its type, range, default and text.

``factor: Annotated[int, Meta(ge=1, le=20, description="Sampling factor.")] = 5`` declares a key
completely; help, checks and documentation read it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self, get_type_hints

from msgspec import Meta, ValidationError, convert, inspect

from tracepaper.strategies.errors import ConfigInvalid, shown, unfit

WINDOW_MAX: Final = 65_536


def derived(description: str, **limits: Any) -> Meta:  # noqa: ANN401 - those of Meta
    """Return the annotation of a key that training sets from the data: ``readOnly``."""
    return Meta(description=description, extra_json_schema={"readOnly": True}, **limits)


# A number beyond its range is a mistake that would fill the memory or hang.
Features = Annotated[
    int, derived("Columns of a row of features; the schema tells.", ge=1, le=4_096)
]
IntervalMinutes = Annotated[int, derived("Minutes of a bar; the candles tell.", ge=1, le=100_800)]
Dim = Annotated[int, Meta(ge=2, le=8_192, description="Width of the model.")]
Layers = Annotated[int, Meta(ge=1, le=256, description="Number of layers.")]
Heads = Annotated[int, Meta(ge=1, le=256, description="Attention heads.")]
Window = Annotated[int, Meta(ge=1, le=WINDOW_MAX, description="Bars that one layer attends to.")]
Horizons = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=1_000_000)], ...],
    Meta(description="Forecast horizons, in bars; `--set` takes times too: 5m,30m,4h."),
]
Encoding = Annotated[str, Meta(description="Position encoding; ? lists all.")]
Clock = Annotated[tuple[str, ...], Meta(description="Time features to add; ? lists all.")]
MlpRatio = Annotated[
    float, Meta(ge=0.01, le=64, description="Width of a layer's MLP, as a multiple of dim.")
]
Dropout = Annotated[float, Meta(ge=0, lt=1, description="Share of activations to drop.")]
Allocation = Annotated[bool, Meta(description="Also learn a position from -1 to 1.")]
Quantiles = Annotated[
    tuple[Annotated[float, Meta(gt=0, lt=1)], ...],
    Meta(description="Also forecast these quantiles of the return, ascending."),
]
Norm = Annotated[str, Meta(description="Layer norm: pre or post.")]
DrawSeed = Annotated[
    int,
    Meta(ge=0, le=2**63 - 1, description="Seed of what the network itself samples."),
]


class Key(NamedTuple):
    """One key of a recipe, as its field declares it."""

    name: str
    type: str  # of its value, or of an entry of its list
    default: Any
    low: float | None
    high: float | None
    range: str  # of its number, in words; empty where it has none
    is_list: bool
    text: str
    derived: bool  # training sets it from the data
    annotation: Any


WHOLE, NUMBER, FLAG, TEXT = "whole number", "number", "true or false", "text"
_TYPES: Final[dict[type[inspect.Type], str]] = {
    inspect.IntType: WHOLE,
    inspect.FloatType: NUMBER,
    inspect.BoolType: FLAG,
    inspect.StrType: TEXT,
    inspect.LiteralType: TEXT,
}


def keys_of(made_of: type[Any]) -> dict[str, Key]:
    """Return every key of a dataclass by its name, in the order of its fields."""
    info = inspect.type_info(made_of)
    assert isinstance(info, inspect.DataclassType)
    annotations = get_type_hints(made_of, include_extras=True)
    return {field.name: _key(field, annotations[field.name]) for field in info.fields}


def _key(field: inspect.Field, annotation: object) -> Key:
    item = field.type
    if isinstance(item, inspect.UnionType):  # a key that may be unset
        item = next(kind for kind in item.types if not isinstance(kind, inspect.NoneType))
    item, about = _unwrapped(item)
    is_list = isinstance(item, inspect.VarTupleType)
    if isinstance(item, inspect.VarTupleType):
        item, _ = _unwrapped(item.item_type)
    low = high = None
    limits = ""
    if isinstance(item, inspect.IntType | inspect.FloatType):
        low = item.gt if item.ge is None else item.ge
        high = item.lt if item.le is None else item.le
        limits = _range(item, low, high)
    return Key(
        field.name,
        _TYPES[type(item)],
        field.default,
        low,
        high,
        limits,
        is_list,
        str(about.get("description", "")),
        derived=bool(about.get("readOnly")),
        annotation=annotation,
    )


def _range(of: inspect.IntType | inspect.FloatType, low: float | None, high: float | None) -> str:
    above, below = of.gt is not None, of.lt is not None
    if low is None:
        return "" if high is None else f"{'below' if below else 'at most'} {high:,}"
    if high is None:
        return f"{'above' if above else 'at least'} {low:,}"
    return f"{'above ' if above else ''}{low:,} to {'below ' if below else ''}{high:,}"


def _unwrapped(kind: inspect.Type) -> tuple[inspect.Type, Mapping[str, Any]]:
    """Return a type without its annotation, and the annotation's JSON Schema."""
    if isinstance(kind, inspect.Metadata):
        return kind.type, kind.extra_json_schema or {}
    return kind, {}


def checked_section(made_of: type[Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a card's ``[architecture]`` for the dataclass *made_of*, as tuples.

    Raises ``ConfigInvalid`` for an unknown key and a value that does not fit its key.
    """
    keys = keys_of(made_of)
    if unknown := sorted(set(section) - set(keys)):
        raise ConfigInvalid(
            f"architecture.{unknown[0]} is unknown{nearest(unknown[0], keys)}; remove it."
        )
    return {name: checked(keys[name], value) for name, value in section.items()}


class Rule(NamedTuple):
    """A condition on the keys of an architecture."""

    passes: Callable[[Any], object]
    sentence: str | Callable[[Any], str]
    """The error, to follow ``architecture.``, with ``{of}`` for the architecture."""

    def check(self, of: object) -> None:
        """Raise ``ConfigInvalid`` unless *of* passes."""
        if not self.passes(of):
            sentence = self.sentence
            sentence = sentence.format(of=of) if isinstance(sentence, str) else sentence(of)
            raise ConfigInvalid(f"architecture.{sentence}.")


def one_of(name: str, choices: Collection[str]) -> Rule:
    """Return the rule that a key is one of *choices*."""
    return Rule(
        lambda of: getattr(of, name) in choices,
        lambda of: f"{name} is {shown(getattr(of, name))}; choose one of {', '.join(choices)}",
    )


EVEN_HEADS: Final = Rule(
    lambda of: of.dim % (2 * of.heads) == 0,
    "dim is {of.dim} for {of.heads} heads; give each an equal, even share",
)
LOOKS_BACK: Final = Rule(
    lambda of: of.window <= WINDOW_MAX,
    f"frames and tokens look back on {{of.window:,}} bars; use at most {WINDOW_MAX:,}",
)


class ReadKeys:
    """A dataclass of the keys of ``[architecture]``, with ``RULES`` between them."""

    __slots__ = ()
    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for a key outside its range, and for the first broken rule."""
        for name, key in keys_of(type(self)).items():
            checked(key, getattr(self, name))
        for base in reversed(type(self).__mro__):
            for rule in vars(base).get("RULES", ()):
                rule.check(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about valid keys that gain nothing; a training says them."""
        return ()

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> Self:
        """Build from a card's section, which has lists for tuples; raise ``ConfigInvalid``."""
        return cls(**checked_section(cls, section))


@dataclass(frozen=True, slots=True)
class NetworkConfig(ReadKeys):
    """The keys that all networks over one symbol's bars share."""

    features: Features = 78
    dim: Dim = 64
    layers: Layers = 4
    horizons: Horizons = (5, 30, 240)
    dropout: Dropout = 0.0
    allocation: Allocation = False
    quantiles: Quantiles = ()

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda of: of.horizons and list(of.horizons) == sorted(set(of.horizons)),
            "horizons must list at least one number of bars, each once, the shortest first",
        ),
        Rule(
            lambda of: all(a < b for a, b in pairwise((0.0, *of.quantiles, 1.0))),
            "quantiles must ascend between 0 and 1",
        ),
    )

    @property
    def window(self) -> int:
        """Rows that one layer sees."""
        raise NotImplementedError

    @property
    def receptive_field(self) -> int:
        """How many rows one answer depends on, at most."""
        return self.window


def listed(config: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass of keys
    """Return the fields of an architecture with lists for tuples, as a card holds them."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def nearest(name: str, names: Collection[str]) -> str:
    """Return words for an error: the nearest of *names* to *name*, or all of them."""
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f", the nearest is {near[0]}" if near else f" (known are {', '.join(names)})"


def checked(key: Key, value: object, section: str = "architecture") -> Any:  # noqa: ANN401
    """Return *value*, a list as a tuple; raise ``ConfigInvalid`` unless it fits *key*.

    A whole number for a float key becomes a float, so that 4 and 4.0 write the same recipe.
    """
    try:
        return convert(value, key.annotation)
    except ValidationError as error:
        said = unfit(error, key.annotation)
        raise ConfigInvalid(f"{section}.{key.name} is {shown(value)}: {said}.") from None
