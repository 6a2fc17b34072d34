"""The data that a recipe's model is fitted to, and the card with which the model begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tracepaper.replay.archive.read import CandleInput
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.baselines import stored_baselines, unfitted
from tracepaper.replay.learning.dataset import Dataset, close_by_close, intervals_of
from tracepaper.replay.learning.fitted import FitRun
from tracepaper.replay.learning.order_books import read_books
from tracepaper.replay.learning.recipe import Recipe
from tracepaper.replay.learning.side_inputs import OtherInputs, SideInputs, inputs_of
from tracepaper.replay.learning.splits import Segment, Split, split_by, split_of
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema_of, wider
from tracepaper.strategies.other_symbol import OTHER


class DataRequest(NamedTuple):
    """The candles that a model is fitted to, with the options of reading them."""

    data: Sequence[CandleInput]  # for order books: paths
    inputs: SideInputs | None = None
    columns: Sequence[str] = ()


def card_of(
    data: Any,  # noqa: ANN401 - what the recipe's kind reads
    recipe: Recipe,
    run: FitRun,
    *,
    architecture: Mapping[str, Any],
    training: Mapping[str, Any],
    calibration: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Return the card of a model that is not calibrated yet."""
    return {
        "model": cards.model_section(recipe.kind.name, run.name, run.created_ms),
        "architecture": architecture,
        **data.card,
        "training": training,
        "calibration": {**calibration, **({"horizon": recipe.horizon} if recipe.horizon else {})},
        "versions": cards.versions_section(),
    }


def read_dataset(
    recipe: Recipe,
    request: DataRequest,
    card: Mapping[str, Any] | None = None,
    *,
    folder: Path | None = None,
) -> Dataset:
    """Return the data of *recipe*, read as its kind needs.

    A model's *card* determines the split and the side inputs. *folder* is given to judge the model
    rather than refit it: the baselines stored there are used.
    """
    source, horizons = recipe.kind.model.source, recipe.horizons
    if source is DataSource.ORDER_BOOKS:
        if request.columns:
            raise ConfigInvalid("Order books have no columns to choose; leave --columns out.")
        paths = [item for item in request.data if isinstance(item, str)]
        if len(paths) < len(request.data):
            raise ConfigInvalid(
                "Order books come from files of `tracepaper data record`; name those."
            )
        return read_books(paths, horizons, card)
    other = getattr(recipe.architecture, OTHER, "")
    if recipe.members and other:
        raise ConfigInvalid(
            f"An ensemble reads bars of one symbol; leave {OTHER} out, or train no ensemble."
        )
    plain = OtherInputs(other) if other else request.inputs

    def read(schema_id: str, split: Callable[[Sequence[Segment]], Split]) -> Dataset:
        return Dataset.read(
            request.data,
            split,
            horizons,
            schema_id,
            intervals=intervals_of(recipe.intervals),
            asset=recipe.asset,
            columns=request.columns,
            stored=None if card is None or folder is None else stored_baselines(folder, card),
            vectors=plain if card is None else inputs_of(card, request.inputs),
        )

    def split(segments: Sequence[Segment]) -> Split:
        return split_by(recipe.split, horizons)(segments) if card is None else split_of(card)

    data = read(card["features"]["schema_id"] if card and folder else recipe.schema_id, split)
    if source is DataSource.CLOSES:
        return close_by_close(data, split)
    if not recipe.members or folder:
        return data
    schemas = (schema_of(member.schema_id, data.interval_ms) for member in recipe.members)
    if (wide := wider(*schemas).schema_id) == data.schema.schema_id:
        return data
    # The baselines of the narrow data are never used.
    return replace(read(wide, lambda _: data.split), narrow=replace(data, stored=unfitted()))
