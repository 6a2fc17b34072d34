"""The examinations of a checkpoint beyond its figures, by the option that asks for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tracepaper.replay.document.values import Table
from tracepaper.replay.learning.evaluation.intervals import intervals
from tracepaper.replay.learning.inspection.attribution import attributions
from tracepaper.replay.learning.inspection.model import Subject
from tracepaper.replay.learning.inspection.perturbation import (
    context_ablation,
    feature_permutation,
    perturbations,
)

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
