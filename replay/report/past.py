"""A stored decision with its model, the bars in the model's lookback, and its forecast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.covariates import recorded_covariates, recorded_covariates_name
from tracepaper.daemon.session.models import forecaster_of
from tracepaper.daemon.session.resume import recall_events
from tracepaper.daemon.session.user_model import load_model, reject_other_model
from tracepaper.replay.document.values import Part
from tracepaper.storage import checkpoints
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.api.model import Model
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.forecasters.attribution import Attending, attending
from tracepaper.strategies.forecasters.cross_asset import over_symbols
from tracepaper.strategies.types.decisions import Forecast, RunRow, Step
from tracepaper.strategies.types.market import Bar


class ModelAnswer(ABC):
    """A model's answer about one decision, computed again; ``key`` is its key in JSON."""

    key: ClassVar[str]

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """Yield the parts of its document for people."""

    def document(self) -> Any:  # noqa: ANN401 - what JSON can hold
        """Return its values for JSON; returns are log returns."""
        return self

    @property
    def added(self) -> Sequence[tuple[str, float]]:
        """The contribution of each feature to the mean, where the answer has it."""
        return ()


Kind = TypeVar("Kind", bound=Forecaster)


@dataclass(frozen=True)
class PastOf(Generic[Kind]):
    """The inputs of one decision: its model, and the bars in the model's lookback."""

    run: RunRow
    sequence: int
    forecaster: Kind
    forecast: Forecast  # as it was stored
    bars: tuple[Bar, ...]  # oldest first; the last one is the decided bar
    price_decimals: int
    is_member: bool = False  # whether the forecaster is a member of the ensemble that decided
    read: tuple[Bar, ...] = ()  # the bars, after the requested earlier ones

    @property
    def decided(self) -> Bar:
        """The bar whose close was decided."""
        return self.bars[-1]

    @property
    def horizon_index(self) -> int:
        """The place of the gates' horizon in the forecast; the first one where it has none."""
        wanted = self.run.gate_horizon
        return self.forecast.horizons.index(wanted) if wanted in self.forecast.horizons else 0


Past = PastOf[Attending]
"""A decision of a network with attention."""


def open_past(database: Path, run_id: str, sequence: int, earlier: int | None = 0) -> Past:
    """Read the decision's bars and forecast, and warm its network up on the bars.

    Also reads *earlier* more bars, or all where that is None. Raises ``DataInvalid`` as
    ``open_any`` does, and for a model without attention.
    """
    past = open_any(database, run_id, sequence, earlier)
    forecaster, model_id = attending(past.forecaster), past.forecaster.model_id
    if over_symbols(past.forecaster) is not None:
        raise DataInvalid(
            f"The model {model_id} attends to several symbols, which only `explain --full` and "
            "`--method rollout` explain; leave comparisons, pages and heads out."
        )
    if forecaster is None:
        raise DataInvalid(
            f"The model {model_id} has no attention to look back through; leave --full, --method "
            "and --heads out, and see its gates and its forecast."
        )
    is_member = forecaster is not past.forecaster
    return PastOf(**{**vars(past), "forecaster": forecaster, "is_member": is_member})


def open_any(
    database: Path, run_id: str, sequence: int, earlier: int | None = 0
) -> PastOf[Forecaster]:
    """Do the same as ``open_past`` for any model.

    Raises ``DataInvalid`` where the decision has no forecast, the run no longer has the bars, or
    the model's checkpoint is missing.
    """
    with Reader.open(database) as reader:
        run = reader.run(run_id)
        step = reader.step(run_id, sequence)
        forecast = stored_forecast(run, step)
        assert isinstance(step.event, Bar)
        instrument = step.event.instrument
        forecaster = kept_forecaster(database, run)
        read = bars_before(
            reader, run_id, sequence, instrument, forecaster, "its model", earlier=earlier
        )
    bars = read[-forecaster.context :]
    forecaster.warm(instrument, bars)
    decimals = next(item.price_decimals for item in run.instruments if item.id == instrument)
    return PastOf(run, sequence, forecaster, forecast, tuple(bars), decimals, read=tuple(read))


def bars_before(
    reader: Reader,
    run_id: str,
    sequence: int,
    instrument: str,
    model: Forecaster,
    name: str,
    *,
    earlier: int | None = 0,
) -> list[Bar]:
    """Return *earlier* bars, then the bars in the lookback of *model* at a decision.

    Gives *model* its other recorded inputs too. Raises ``DataInvalid``, which calls the model
    *name*, where bars are missing.
    """
    wanted = None if earlier is None else model.context + earlier
    bars = reader.bars(run_id, instrument, wanted, until=sequence)
    if len(bars) < model.context:
        raise DataInvalid(
            f"Run {run_id} holds {len(bars):,} bars up to decision {sequence}, and {name} looks "
            f"back on {model.context:,}; choose a later decision."
        )
    recall_events(model, reader, run_id, bars)
    return bars


def stored_forecast(run: RunRow, step: Step) -> Forecast:
    """Return the stored forecast; raise ``DataInvalid`` where there is nothing to recompute."""
    forecast = step.prediction
    if not isinstance(step.event, Bar) or not isinstance(forecast, Forecast):
        raise DataInvalid(
            f"Step {step.sequence} of run {run.run_id} has no forecast of a model (none asked, "
            "not yet warm, late or unusable); choose a decision with one."
        )
    return forecast


def kept_forecaster(database: Path, run: RunRow) -> Forecaster:
    """Return the model that decided, stored beside the database or bundled.

    Raises ``DataInvalid`` or ``CheckpointMismatch`` where it is missing.
    """
    config = restore(run.config)
    if config.model.custom_class:
        custom_model = load_model(config)
        reject_other_model(custom_model, run.model_sha256, run.run_id)
        of_class = type(custom_model.model)
        is_told = of_class.contributions is not Model.contributions
        is_told |= "attended" in custom_model.measures
        if not is_told and of_class.attended is Model.attended:
            raise DataInvalid(
                f"The model {config.model.custom_class} is a custom class without contributions; "
                "leave --full, --page and --png out, or implement contributions or attended."
            )
        custom_model.scale(run.instruments)
        return custom_model
    folder = checkpoints.find_kept(database, run.model_id)
    vectors = recorded_covariates(
        database, recorded_covariates_name(run.libraries), checkpoints.read_card(folder)
    )
    forecaster: Forecaster = forecaster_of(folder, config, mode="step", covariates=vectors)
    if forecaster.model_id != run.model_id:
        raise DataInvalid(
            f"{folder} holds the checkpoint {forecaster.model_id}, but {run.model_id} decided; "
            "restore it."
        )
    return forecaster
