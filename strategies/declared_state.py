"""A strategy's declared state: what it may be, its encoding, and how a start gets it back.

The rules are docs/protection.md, E1 to E4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
from msgspec import Struct, inspect

from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed

_encode: Final = msgspec.msgpack.Encoder().encode
_ADVICE: Final = "declare a msgspec Struct of numbers, texts, lists and dictionaries with defaults"
_NO_ORDER: Final = (inspect.SetType, inspect.FrozenSetType)


class Declaring(Protocol):
    """An object that may declare a state: a strategy of one instrument, or of all."""

    State: type[Struct] | None
    state: Struct


class DeclaredState:
    """The declared state of one strategy object: whether it has changed, and its encoding."""

    def __init__(self, strategy: Declaring, declared: type[Struct]) -> None:
        self._strategy = strategy
        self._type = declared
        self._decoder = msgspec.msgpack.Decoder(declared)
        self.encoded = b""
        self.encoded = self._encoding()

    @classmethod
    def of(cls, strategy: Declaring) -> DeclaredState | None:
        """Return what *strategy* declares; None where it declares nothing."""
        return None if strategy.State is None else cls(strategy, strategy.State)

    def changed(self) -> bool:
        """Return whether it is another than at the last question, or than was handed back.

        Raises ``StrategyFailed`` where what it holds now could not be handed back.
        """
        encoded = self._encoding()
        if encoded == self.encoded:
            return False
        self.encoded = encoded
        return True

    def hand_back(self, encoded: bytes) -> None:
        """Give the strategy the state that a step stored; raise ``ConfigInvalid`` if it is none."""
        try:
            self._strategy.state = self._decoder.decode(encoded)
        except msgspec.MsgspecError as error:
            raise ConfigInvalid(
                f"What a step stored is no {self._type.__qualname__} any more ({error}); open a "
                "new run, in another database."
            ) from error
        self.encoded = encoded

    def _encoding(self) -> bytes:
        """Return the encoding of the state, which decodes to its equal."""
        state = self._strategy.state
        if type(state) is not self._type:
            raise StrategyFailed(
                f"self.state is a {type(state).__name__}; keep it a {self._type.__qualname__}."
            )
        try:
            encoded = _encode(state)
            if encoded == self.encoded:
                return encoded
            again = self._decoder.decode(encoded)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise self._unstorable(str(error)) from error
        if again != state and repr(again) != repr(state):  # NaN is not NaN
            raise self._unstorable(f"a restart would read {again!r:.80} from {state!r:.80}")
        return encoded

    def _unstorable(self, why: str) -> StrategyFailed:
        return StrategyFailed(
            f"{self._type.__qualname__} cannot be stored ({why}); let its fields hold what they "
            "are declared as."
        )


def check_declared(name: str, declared: object) -> None:
    """Refuse a ``State`` that could not be stored and handed back; None declares nothing."""
    if declared is None:
        return
    if not (isinstance(declared, type) and issubclass(declared, Struct)):
        raise ConfigInvalid(f"{name}.State is {declared!r:.80}; {_ADVICE}.")
    try:
        declared()
    except TypeError as error:
        raise ConfigInvalid(f"{name}.State cannot be made ({error}); {_ADVICE}.") from error
    try:
        kinds = list(_kinds(inspect.type_info(declared), set()))
        msgspec.msgpack.Decoder(declared)
    except TypeError as error:
        raise ConfigInvalid(f"{name}.State cannot be stored ({error}); {_ADVICE}.") from error
    if any(isinstance(kind, inspect.CustomType) for kind in kinds):
        raise ConfigInvalid(f"{name}.State holds what msgpack cannot encode; {_ADVICE}.")
    if any(isinstance(kind, _NO_ORDER) for kind in kinds):
        raise ConfigInvalid(f"{name}.State holds a set, which has no order; {_ADVICE}.")


def _kinds(of: inspect.Type, seen: set[type]) -> Iterator[inspect.Type]:
    """Yield *of* and every type that it is made of."""
    yield of
    if isinstance(of, inspect.StructType):
        if of.cls in seen:
            return
        seen.add(of.cls)
        for field in of.fields:
            yield from _kinds(field.type, seen)
    for name in ("item_type", "key_type", "value_type", "type"):
        inner = getattr(of, name, None)
        if isinstance(inner, inspect.Type):
            yield from _kinds(inner, seen)
    for name in ("types", "item_types"):
        for inner in getattr(of, name, ()):
            yield from _kinds(inner, seen)
