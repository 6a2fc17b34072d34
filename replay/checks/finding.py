"""What ``lookahead`` found, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tracepaper.daemon.session.external_inputs import Outside
from tracepaper.replay.checks.compare import Difference
from tracepaper.replay.checks.isolation import packed
from tracepaper.replay.checks.perturbations import DerivedStep


@dataclass
class LookaheadFinding:
    """The result of a check: how much of how much was probed, and the first difference."""

    check: str
    planned: int = 0  # futures to corrupt or cut off
    probes: int = 0  # of them done
    compared: int = 0  # steps
    differences: list[Difference] = field(default_factory=list)
    because: str = ""  # the cause that the first difference shows
    given: int = 0  # bars of all instruments
    bars: int = 0  # of them replayed
    without_later: int = 0  # of them decided while no later bar existed in the process
    warmup: int = 0
    opened: list[Outside] = field(default_factory=list)  # and not allowed
    allowed: list[Outside] = field(default_factory=list)
    depends: list[str] = field(default_factory=list)  # on the date, on the absolute price
    unproved: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)  # parts for which the time did not suffice

    @property
    def holds(self) -> bool:
        """Whether all was probed, nothing moved, and nothing was opened that is not allowed."""
        return self.verdict == "nothing moved"

    @property
    def verdict(self) -> str:
        """``moved``, ``read``, ``nothing moved``, or without an end ``nothing moved so far``."""
        if self.differences:
            return "moved"
        if self.opened:
            return "read"
        probed = self.without_later and self.probes and self.compared
        return "nothing moved" if probed and not self.unfinished else "nothing moved so far"

    def sentence(self) -> str:
        """Say the verdict in one sentence, with how much was probed of how much."""
        if self.differences:
            return f"moved: {self.differences[0].sentence()}: {self.because}."
        if self.opened:
            names = ", ".join(
                f"{_KINDS.get(item.what, item.what)} {item.name}" for item in self.opened
            )
            return (
                f"read: the strategy opened {names}; pass each that cannot tell the future with "
                "--allow-reading."
            )
        futures = f"{self.probes}" if self.holds else f"{self.probes} of {self.planned}"
        counted = (
            f"{self.without_later:,} of {self.given:,} bars decided without a later one, "
            f"{futures} futures corrupted or cut off, {self.compared:,} steps compared, "
            f"{self.verdict}"
        )
        if self.holds:
            return f"{counted}."
        return f"not probed to the end: {counted}; give more --seconds, or fewer --bars."


SURROUNDED: Final = "the environment, the working folder and the hashes of texts"
ON_HASHES: Final = (
    "it depends on the hash of a text, or on the order of a set of texts, which Python draws anew "
    "in each process; sort them"
)
_KINDS: Final = {"table": "a table in"}
ON_CLOCK: Final = "it depends on the machine's clock"
UNEQUAL: Final = (
    "it cannot be repeated, two equal runs differ: it draws at random, or by its process, or what "
    "it reads changes"
)


def first_unequal(derived: Sequence[DerivedStep], steps: Sequence[bytes]) -> int | None:
    """Return the index of the first of *derived* whose packed step differs; None without one."""
    pairs = enumerate(zip(derived, steps, strict=True))
    return next((index for index, (own, other) in pairs if packed(own.step) != other), None)
