"""The canonical encoding and the hashes: the chain, the decision and the window; pure.

A hash covers what is stored, so it can be recomputed from the database alone. ``-0.0`` is 0.0,
booleans are integers, and what is not finite is null.

The rules are docs/storage.md, S5 and S6, and docs/identity.md, I2 to I4.
"""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from math import isfinite
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from tracepaper.storage.record.rows import laid_row
from tracepaper.strategies.api.context import Cancel, OrderRequest
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.gates.gate import GATES, GateKind
from tracepaper.strategies.types.decisions import (
    BLOCK_BARS,
    Decision,
    DecisionOutcome,
    Forecast,
    GateSet,
    Prediction,
    PredictionTimeout,
    StrategyDecision,
)
from tracepaper.strategies.types.market import Bar, Instrument

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracepaper.storage.record.columns import Row
    from tracepaper.storage.record.rows import LaidRow

CANONICAL_DECIMALS: Final = 18
"""Every price and quantity is hashed as an integer of 10⁻¹⁸, whatever its instrument's scale."""

HASH_BYTES: Final = 32

pack = msgspec.msgpack.Encoder().encode
_ARRAY_OF_FIVE: Final = b"\x95"
"""What stands before the encodings of its five elements."""


def finite(number: float | None) -> float | None:
    """Return *number* as it is stored and hashed: a float, -0.0 as 0.0, null if not finite."""
    if number is None or not isfinite(number):
        return None
    return number + 0.0


def all_finite(numbers: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return each of *numbers* as ``finite`` does."""
    try:
        # The usual case, without a test a number: a sum is finite only if every term is.
        added = tuple([number + 0.0 for number in numbers])  # type: ignore[operator]
        if isfinite(sum(added)):
            return added
    except TypeError:  # one of them is null
        pass
    return tuple([finite(number) for number in numbers])


# ---------------------------------------------------------------- the chain


def chain_digest(
    previous: bytes, covered: bytes, prefix: bytes, payload: Sequence[object]
) -> bytes:
    """Return ``sha256(previous + covered + prefix + msgpack(payload))``, the link after *previous*.

    The payload of a step is all values of its rows but the digest, without nulls, and *prefix* says
    of which columns they are (``rows.canonical``), and which gate set judged. *covered* is
    ``Covered.content`` after the step.
    """
    return sha256(b"".join((previous, covered, prefix, pack(payload)))).digest()


NOTHING: Final = bytes(HASH_BYTES)
"""Stands for the running hash before the first row, and for the state before the first."""


class Covered:
    """What every link covers besides its own step: all that a prune leaves of the steps before.

    ``kept`` is a running hash of the rows that a prune keeps, ``state`` the hash of the engine's
    latest state. So whoever holds a later link can tell whether what was left is what was there.
    """

    __slots__ = ("content", "kept", "state")

    def __init__(self, kept: bytes = NOTHING, state: bytes = NOTHING) -> None:
        self.kept = kept
        self.state = state
        self.content = kept + state

    def take(self, rows: Sequence[LaidRow], state: bytes | None) -> bytes | None:
        """Take in the kept *rows* and the state of a step; return ``kept`` where it changed."""
        changed = kept_digest(self.kept, rows) if rows else None
        self.follow(changed, state)
        return changed

    def follow(self, kept: bytes | None, state: bytes | None) -> None:
        """Take over what a step stored: ``kept`` and the state, each where it changed."""
        if kept is None and state is None:
            return
        if kept is not None:
            self.kept = kept
        if state is not None:
            self.state = sha256(state).digest()
        self.content = self.kept + self.state

    def copy(self) -> Covered:
        """Return an independent one that stands at the same place."""
        return Covered(self.kept, self.state)


def kept_digest(before: bytes, rows: Sequence[LaidRow]) -> bytes:
    """Return the running hash after a step of which a prune keeps *rows*."""
    content = pack([(layout.sha256, values) for layout, values in rows])
    return sha256(before + content).digest()


def _canonical(table: str, row: Row) -> tuple[bytes, Row]:
    """Return the hash of the columns that *row* fills, and their values: nulls are not hashed."""
    layout, values = laid_row(table, row)
    return layout.sha256, values


def opened_digest(run: Row, instruments: Iterable[Row], gate_sets: Iterable[Row]) -> bytes:
    """Return the chain's first link: the run as opened, its instruments and its gate sets."""
    parts = (("runs", (run,)), ("instruments", instruments), ("gate_sets", gate_sets))
    content = [[_canonical(table, row) for row in rows] for table, rows in parts]
    return sha256(pack(content)).digest()


def gates_digest(rows: Iterable[Row]) -> bytes:
    """Return the hash of the *rows* of a gate set, in their order."""
    hashed = sha256()
    for row in rows:
        hashed.update(pack(_canonical("gate_sets", row)))
    return hashed.digest()


# ---------------------------------------------------------------- what parity compares


def scale_factor(decimals: int) -> int:
    """Return the factor from 10^-*decimals* to the canonical scale; raise beyond 18 decimals."""
    if not 0 <= decimals <= CANONICAL_DECIMALS:
        raise InvariantBroken(
            f"A number has {decimals} decimals; hashes take 0 to {CANONICAL_DECIMALS}."
        )
    return int(10 ** (CANONICAL_DECIMALS - decimals))


@lru_cache(maxsize=1024)
def _factors(instrument: Instrument) -> tuple[int, int, int]:
    """Return the factors of prices, volume and quantities of *instrument*."""
    return (
        scale_factor(instrument.price_decimals),
        scale_factor(instrument.volume_decimals),
        scale_factor(instrument.quantity_decimals),
    )


def canonical_bar(bar: Bar, instrument: Instrument) -> bytes:
    """Return open time and OHLCV of *bar* as hexadecimal text of the canonical scale.

    ``65114.20`` and ``65114.2`` give the same bytes. Turnover, source and the times at which
    the bar was seen are left out: archives lack them or differ in them.
    """
    price, volume, _ = _factors(instrument)
    return _bar_text(bar, price, volume)


def _bar_text(bar: Bar, price: int, volume: int) -> bytes:
    """Return the text of ``canonical_bar`` where the instrument's factors are known."""
    return b"%x,%x,%x,%x,%x,%x;" % (
        bar.open_time_ms,
        bar.open * price,
        bar.high * price,
        bar.low * price,
        bar.close * price,
        bar.volume * volume,
    )


class _CountedGates:
    """The gates of a set that belong to a decision's identity: neither timing nor risk."""

    def __init__(self, gate_set: GateSet) -> None:
        gates = gate_set.gates
        self.places = tuple(
            place
            for place, name in enumerate(gates)
            if not GATES[name].is_timing and GATES[name].kind is not GateKind.RISK
        )
        # With one place ``itemgetter`` returns no tuple, and with none it cannot be made.
        self.pick = itemgetter(*self.places) if len(self.places) > 1 else self._pick_few
        names = self.names = tuple(gates[place] for place in self.places)
        thresholds = tuple(finite(gate_set.thresholds[place]) for place in self.places)
        self.sha256 = sha256(pack((names, thresholds))).digest()
        self._packed: dict[int, int] = {}

    def _pick_few(self, measures: tuple[float | None, ...]) -> tuple[float | None, ...]:
        return tuple(measures[place] for place in self.places)

    def passed(self, bits: int) -> int:
        """Return the bits of the counted gates alone, packed in their order."""
        packed = self._packed.get(bits)
        if packed is None:
            packed = sum((bits >> place & 1) << i for i, place in enumerate(self.places))
            self._packed[bits] = packed
        return packed


def _forecast_part(prediction: Prediction) -> object:
    """Return the hashed part of *prediction*: neither the model's id nor a deadline."""
    match prediction:
        case None:
            return None
        case PredictionTimeout():
            return "late"
        case Forecast(explanation=explanation):
            columns = (
                prediction.mean_return,
                prediction.stdev_return,
                prediction.p_down,
                prediction.p_flat,
                prediction.p_up,
                prediction.volatility,
            )
            explained = (
                None
                if explanation is None
                else (
                    finite(explanation.confidence),
                    finite(explanation.content_free),
                    finite(explanation.recent_mass),
                    finite(explanation.older_mass),
                    finite(explanation.shift),
                    finite(explanation.l1_error),
                    explanation.entropy,
                    explanation.buckets,
                )
            )
            return (prediction.horizons, *(all_finite(column) for column in columns), explained)


def _request_part(request: OrderRequest | Cancel) -> tuple[object, ...]:
    """Return the hashed part of *request*: no reason, and numbers without trailing zeros."""
    if isinstance(request, Cancel):
        return ("cancel", request.tag)
    numbers = (request.quantity, request.price, request.trigger)
    return (
        request.kind.value,
        request.side.value,
        *(None if number is None else str(Decimal(str(number)).normalize()) for number in numbers),
        request.post_only,
        request.reduce_only,
        request.until,
        request.tag,
        *(() if request.position_side is None else (request.position_side.value,)),
    )


def requests_sha256(requests: Sequence[OrderRequest | Cancel]) -> str:
    """Return the hash of a list of orders, in hexadecimal."""
    return sha256(pack([_request_part(request) for request in requests])).hexdigest()


class DecisionHash:
    """What parity compares, ``v_decisions.decision_sha256``, for the decisions of one instrument.

    It covers the bar, the forecast with its explanation, the gates, action and target. Left
    out is what only time or the account explains: the timing gates (late, stale, deadline),
    the risk gates, and therefore which gate refused (the gates that count show it by their
    bits); ids, sequence, reason, source and times seen. Of decisions that share outcome and
    target everything but the measures is encoded once.
    """

    def __init__(self, instrument: Instrument) -> None:
        self._quantity_factor = _factors(instrument)[2]
        self._gate_set: GateSet | None = None
        self._gates = _CountedGates(GateSet((), ()))
        self._outcome: DecisionOutcome | None = None
        self._target: int | None = 0
        self._gates_part = self._verdict_part = b""  # their encodings, around the measures

    def digest(
        self,
        canonical: bytes,
        prediction: Prediction,
        decision: Decision,
        requests: Sequence[OrderRequest | Cancel] = (),
    ) -> bytes:
        """Return the hash of *decision* on the bar whose ``canonical_bar`` is *canonical*.

        *requests* are the orders of a decision that is a list. Its measures are as the gates give
        them: each is finite or null, and none is -0.0.
        """
        if decision.outcome is not self._outcome or decision.target_quantity != self._target:
            self._encode_verdict(decision)
        measures = pack(self._gates.pick(decision.measures))
        answer = b"" if prediction is None else pack(_forecast_part(prediction))
        orders = pack([_request_part(request) for request in requests]) if requests else b""
        parts = (canonical, self._gates_part, measures, self._verdict_part, answer, orders)
        return sha256(b"".join(parts)).digest()

    def content(self, decided: StrategyDecision) -> bytes:
        """Return the bytes of *decided*, by one strategy of several, that are hashed.

        Its measures are those that the account's decision has not.
        """
        if decided.outcome is not self._outcome or decided.target_quantity != self._target:
            self._encode_verdict(decided)
        measures = [one for one in decided.measures if one[0] in self._gates.names]
        return self._gates_part + pack(measures) + self._verdict_part

    def _encode_verdict(self, decision: Decision | StrategyDecision) -> None:
        """Encode all of *decision* but its measures, as parts of one array of five."""
        outcome = self._outcome = decision.outcome
        self._target = decision.target_quantity
        if outcome.gate_set is not self._gate_set:
            self._gate_set, self._gates = outcome.gate_set, _CountedGates(outcome.gate_set)
            self._gates_part = _ARRAY_OF_FIVE + pack(self._gates.sha256)
        passed = self._gates.passed(outcome.passed)
        target = None if self._target is None else b"%x" % (self._target * self._quantity_factor)
        self._verdict_part = pack(passed) + pack(outcome.action) + pack(target)


def decision_digest(
    bar: Bar,
    prediction: Prediction,
    decision: Decision,
    instrument: Instrument,
    netted: Sequence[StrategyDecision] = (),
) -> bytes:
    """Return the ``DecisionHash`` of one decision by itself, whatever its measures are.

    *netted* are those of several strategies, if it is what they want together.
    """
    hashed = DecisionHash(instrument)
    decision = replace(decision, measures=all_finite(decision.measures))
    own = hashed.digest(canonical_bar(bar, instrument), prediction, decision)
    return several_digest(own, map(hashed.content, netted)) if netted else own


def several_digest(own: bytes, contents: Iterable[bytes]) -> bytes:
    """Return the hash of a decision that nets several: *own*, and the ``content`` of each."""
    return sha256(own + b"".join(contents)).digest()


# ---------------------------------------------------------------- what a decision saw


class WindowHash:
    """The hash of the last *bars* bars of one instrument: of all known ones while there are fewer.

    The window is cut into blocks of 64 intervals of absolute time. Within a block the bars are
    chained backwards: the tail of a bar is ``sha256(its canonical bar + the tail of the next)``,
    and the block's last bar has no next. The window's hash is the SHA-256 over, in this order,

    1. the tail of the first bar of every block but the oldest and the newest, oldest first;
    2. the canonical bars of the newest block;
    3. the tail of the first bar of the oldest block, of what the window holds of it (nothing where
       that is the newest block too);
    4. the number of bars, eight bytes big-endian.

    So it depends on the window's bars alone. What comes first changes least: its state is kept and
    copied at each bar, and is made anew only where a block enters or leaves, twice in 64 bars. The
    oldest block loses its bars from the front, so the tails of its bars are known beforehand.
    """

    def __init__(self, instrument: Instrument, interval_ms: int, bars: int) -> None:
        """Hash windows of *bars* bars, each of *interval_ms*; raise where that is under 1."""
        if bars < 1:
            raise InvariantBroken(f"A window of {bars} bars holds nothing.")
        self._price_factor, self._volume_factor, _ = _factors(instrument)
        self._block_ms = interval_ms * BLOCK_BARS
        self._bars = bars
        self._known = 0  # bars in the window
        self._count = bytes(8)  # the same as it is hashed
        self._block = -1  # which block the newest bar lies in
        self._newest: list[bytes] = []  # canonical bars of that block
        self._earlier: deque[list[bytes]] = deque()  # tails of the bars of each block before it
        self._left = 0  # bars of the oldest block that have left the window
        self._state = sha256()  # over parts 1 and 2
        self._last_open_ms = -1

    def push(self, bar: Bar) -> bytes:
        """Take in the next accepted bar and return its ``canonical_bar``.

        Raises ``InvariantBroken`` where it is not newer than the last.
        """
        open_ms = bar.open_time_ms
        if open_ms <= self._last_open_ms:
            raise InvariantBroken(f"Bar {open_ms} came after {self._last_open_ms}.")
        self._last_open_ms = open_ms
        if open_ms // self._block_ms != self._block:
            self._open_block(open_ms // self._block_ms)
        canonical = _bar_text(bar, self._price_factor, self._volume_factor)
        self._newest.append(canonical)
        self._state.update(canonical)
        if self._known < self._bars:
            self._known += 1
            self._count = self._known.to_bytes(8, "big")
        else:
            self._left += 1
            if self._earlier and self._left == len(self._earlier[0]):
                self._earlier.popleft()
                self._left = 0
                self._begin_state()
        return canonical

    def _open_block(self, block: int) -> None:
        """Close the newest block: chain its bars from the last to the first."""
        self._block = block
        if not self._newest:
            return
        tail, tails = b"", []
        for canonical in reversed(self._newest):
            tail = sha256(canonical + tail).digest()
            tails.append(tail)
        tails.reverse()
        self._earlier.append(tails)
        self._newest.clear()
        self._begin_state()

    def _begin_state(self) -> None:
        whole = [tails[0] for tails in islice(self._earlier, 1, None)]
        self._state = sha256(b"".join((*whole, *self._newest)))

    def digest(self) -> bytes:
        """Return the hash of the window that ends with the newest bar."""
        if self._earlier:
            hashed = self._state.copy()
            hashed.update(self._earlier[0][self._left] + self._count)
        else:
            hashed = sha256(b"".join(self._newest[self._left :]) + self._count)
        return hashed.digest()
