"""What is learnt from, and what was chosen before learning starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tracepaper.replay.training.chunks import Samples, samples_of
from tracepaper.replay.training.evaluation import Baselines, fit_baselines
from tracepaper.replay.training.options import FitOptions
from tracepaper.replay.training.series import Segment, Source, load
from tracepaper.replay.training.splits import Part, Split, date_ms
from tracepaper.strategies.errors import CheckpointMismatch, shown
from tracepaper.strategies.features import FeatureSchema, schema
from tracepaper.strategies.networks.flash import FlashConfig


@dataclass(frozen=True)
class Material:
    """What is learnt from: files, segments, the split, and samples by part."""

    sources: Sequence[Source]
    segments: Sequence[Segment]
    split: Split
    schema: FeatureSchema
    horizons: tuple[int, ...]

    @classmethod
    def read(
        cls,
        paths: Sequence[str],
        split: Callable[[Sequence[Segment]], Split],
        horizons: tuple[int, ...],
        schema_id: str = "v1",
    ) -> Material:
        """Load *paths* and split their calendar."""
        known = schema(schema_id)
        sources, segments = load(paths, known)
        return cls(sources, segments, split(segments), known, horizons)

    @cached_property
    def baselines(self) -> Baselines:
        """The baselines, fitted on the training part when first asked for."""
        return fit_baselines(self.samples(Part.TRAIN))

    def samples(self, part: Part) -> list[Samples]:
        """Return the samples of one part."""
        return samples_of(self.segments, self.horizons, self.split, part)


@dataclass(frozen=True)
class Recipe:
    """Everything that is chosen before training starts."""

    name: str
    config: FlashConfig
    options: FitOptions
    horizon: int  # of the gates
    created_ms: int
    explained_bars: int  # of the calibration and of the test part, to explain
    device: str = "cpu"


def split_of(card: Mapping[str, Any]) -> Split:
    """Return the split that a card names; raise ``CheckpointMismatch`` where it names none."""
    try:
        section = card["split"]
        return Split(
            train_until_ms=date_ms(section["train_until"]),
            validation_until_ms=date_ms(section["validation_until"]),
            calibration_until_ms=date_ms(section["calibration_until"]),
            embargo_bars=int(section["embargo_bars"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointMismatch(
            f"The model's card does not say its split ({shown(error)}); judge a checkpoint that "
            "does."
        ) from None
