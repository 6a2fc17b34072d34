"""The inspections of a checkpoint beyond its figures, by the names that ask for each."""

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

INSPECTIONS: Final[Mapping[str, Callable[[Subject, int], list[Table]]]] = {
    "deletion": perturbations,
    "context": context_ablation,
    "permutation": feature_permutation,
    "attribution": attributions,
    "intervals": lambda subject, _: intervals(subject),
}
"""What ``--inspect`` names: each takes the subject and a number of decisions, or bars."""
_DECISIONS: Final = 200


def examined(subject: Subject, asked: Mapping[str, int]) -> Iterator[Table]:
    """Yield the findings of every inspection that is *asked* for, by name, with its number."""
    for name, inspect in INSPECTIONS.items():
        if name in asked:
            yield from inspect(subject, asked[name])


def read_inspections(texts: Sequence[str]) -> dict[str, int]:
    """Return how many decisions each ``NAME`` or ``NAME=N`` asks for, by name."""
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
        found[name] = int(count) if equals else _DECISIONS
    return found
