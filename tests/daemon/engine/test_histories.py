"""Random histories cause the steps that they always caused, to the byte.

Their laws hold at every step as well. A digest finds what no law says, such as the reason of an
order; `make golden` writes it anew after a change that is meant.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from histories import KINDS, History, events_of, played, since_decided

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.strategies.types.decisions import Step

GOLDEN: Final = Path(__file__).parents[2] / "data/golden_histories.json"
OF_A_KIND: Final = 10
EVENTS: Final = 100


class DigestedHistory(History):
    """A history with a digest of its steps."""

    def __init__(self, seed: int, kind: str, *, most: int) -> None:
        self._digest = sha256()
        super().__init__(seed, kind, most=most)
        self.digest = self._digest.hexdigest()[:16]

    def _keep(self, steps: list[Step]) -> None:
        for step in steps:
            self._digest.update(msgspec.msgpack.encode(step))


@pytest.mark.parametrize("kind", KINDS)
def test_random_histories_cause_the_steps_that_they_always_caused(
    kind: str, *, rewrite_golden: bool
) -> None:
    digests = [DigestedHistory(seed, kind, most=EVENTS).digest for seed in range(OF_A_KIND)]
    golden = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    if rewrite_golden:
        golden = {name: golden.get(name) for name in KINDS} | {kind: digests}
        GOLDEN.write_text(json.dumps(golden, indent=0) + "\n", encoding="utf-8")
    assert golden[kind] == digests


class Middle(History):
    """A history, and an engine that took it up in its middle and goes on beside its own."""

    def _begin(self) -> None:
        self._fed = list[Any]()
        self._steps = list[Step]()
        self._second: Engine | None = None

    def _keep(self, steps: list[Step]) -> None:
        self._steps = steps

    def _take(self, event: Any) -> None:
        super()._take(event)
        if self._second is not None:
            assert played(self._second, event) == self._steps
            self.counted["compared"] += 1
        self._fed += events_of(event)

    def _restart(self) -> None:
        self._second = self._opened()
        restart = Restart(self._second)
        restart.restore(
            self.engine.state(),
            next_sequence=self.engine.sequence,
            since=since_decided(self.engine),
        )
        for event in self._fed:
            restart.repeat(event)
        assert self._second.state() == self.engine.state()


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_takes_a_history_up_in_its_middle_causes_the_same_steps(kind: str) -> None:
    histories = [Middle(seed, kind, most=2 * EVENTS) for seed in range(2)]
    assert sum(history.counted["compared"] for history in histories) > 50
