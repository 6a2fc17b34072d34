"""The examinations of a checkpoint beyond its figures, by the option that asks for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.inspection.attribution import attributions
from tracepaper.replay.learning.inspection.intervals import intervals
from tracepaper.replay.learning.inspection.model import Subject
from tracepaper.replay.learning.inspection.perturbation import (
    context_ablation,
    feature_permutation,
    perturbations,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.networks.keys import nearest

EXAMINATIONS: Final[Mapping[str, Callable[[Subject, int], list[Table]]]] = {
    "explanations": perturbations,
    "ablation": context_ablation,
    "permutation": feature_permutation,
    "attributions": attributions,
    "intervals": lambda subject, _: intervals(subject),
}
"""Each takes the subject and how many decisions, or bars, it is asked for."""


def examined(subject: Subject, asked: Mapping[str, int]) -> Iterator[Table]:
    """Yield the findings of every examination that is *asked* for, by name, with its number."""
    for name, examine in EXAMINATIONS.items():
        if asked.get(name):
            yield from examine(subject, asked[name])


INSPECTIONS: Final = {
    "deletion": "explanations",
    "context": "ablation",
    "permutation": "permutation",
    "attribution": "attributions",
    "intervals": "intervals",
}
"""What ``--inspect`` names, and what its result is called."""
_DECISIONS: Final = 200


def read_inspections(texts: Sequence[str]) -> dict[str, int]:
    """Return how many decisions each ``NAME`` or ``NAME=N`` asks for, by the name of the result."""
    found = {}
    for text in texts:
        name, equals, count = text.partition("=")
        if name not in INSPECTIONS:
            raise ConfigInvalid(
                f"--inspect {text} names no inspection{nearest(name, INSPECTIONS)}."
            )
        if equals and (name == "intervals" or not count.isdecimal() or not int(count)):
            raise ConfigInvalid(
                f"--inspect {text}: write {name}"
                f"{'' if name == 'intervals' else ' or ' + name + '=N, a number of decisions'}."
            )
        found[INSPECTIONS[name]] = int(count) if equals else _DECISIONS
    return found
