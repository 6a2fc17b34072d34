"""Fitted models of any kind, with the options and data of a fit.

The rules are docs/models.md, L25 to L27.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.baselines import save_judged
from tracepaper.replay.learning.fit import Fit, Observe
from tracepaper.replay.learning.judge.forecasts import OF_MODEL, Forecasts
from tracepaper.replay.learning.judge.gates import (
    Judgement,
    explained_rows,
    gates_section,
    judged_gates,
    selective_gains,
)
from tracepaper.replay.learning.judge.heads import correlation_figures, correlation_sentences
from tracepaper.replay.learning.judge.metrics import figures, paired_figures
from tracepaper.replay.learning.splits import Part
from tracepaper.storage.checkpoints import Checkpoint
from tracepaper.strategies.features.rolling import Array

if TYPE_CHECKING:
    from tracepaper.strategies.api.strategy import Forecaster
    from tracepaper.strategies.forecasters.tabular import TrainedRows


EXPLAINED_BARS: Final = 120_000
"""The default number of bars to explain, in the calibration and in the test part."""
Say = Callable[[str], None]


Each = Callable[..., list[Any]]
"""``(function(unit, say), units, say, keep) -> values``, here or in other processes.

*keep* receives the index and value of each unit as soon as it is ready. For other processes the
function is pickled, and its messages appear when it ends.
"""


class FitRun(NamedTuple):
    """The options of one fit; *folder* holds the state of an unfinished fit."""

    folder: Path
    name: str = ""
    created_ms: int = 0
    observe: Observe = lambda _: None
    say: Say = lambda _: None
    resume: bool = False

    def complete(self, fit: Fit) -> None:
        """Run *fit* to its end, with ``resume`` from its saved state; report an early stop.

        Raises ``CheckpointMismatch`` for the state of another fit.
        """
        if self.resume and fit.resume():
            self.say(f"Resuming the fit at step {fit.progress.step}.")
        elif self.resume:
            self.say("There is no state of this fit to resume; it begins at step 0.")
        fit.run(self.observe)
        if fit.progress.stopped:
            self.say(fit.progress.stopped)


class Mix(NamedTuple):
    """How an ensemble mixes its members, [horizon] each: see ``EnsembleForecaster``."""

    shares: Array
    spread: Array

    def log_variance(self, network: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
        """Return the ensemble's log variance from those of its members [.., horizon]."""
        return self.shares * network + (1.0 - self.shares) * rows


@dataclass(frozen=True)
class FittedModel(ABC):
    """A fitted model; its steps, calibrated and evaluated, return copies with more of the card.

    *data* is the material that the model's kind reads. Models of order books override the steps.
    """

    card: Mapping[str, Any]  # complete after evaluation
    tensors: Mapping[str, Tensor]
    stopped: str = ""  # why the fit ended early; else empty
    called: ClassVar[str] = OF_MODEL
    """The model's name in its figures."""
    members: ClassVar[tuple[str, ...]] = ()
    """The forecasters in its tables that are its members."""
    shows_gates: ClassVar[bool] = True
    """Whether tables show trading rules by its gates."""

    def with_card(self, **sections: Any) -> Self:  # noqa: ANN401 - sections of a card
        """Return a copy with these *sections* of the card."""
        return type(self)({**self.card, **sections}, self.tensors, self.stopped)

    @property
    def horizon(self) -> int:
        """The gates' horizon in bars."""
        return int(self.card["calibration"]["horizon"])

    @cached_property
    def network(self) -> Any:  # noqa: ANN401 - of its kind
        """The network of bars that can be inspected, or None."""
        return None

    @cached_property
    def rows(self) -> TrainedRows | None:
        """The model of one row of features that can be inspected, or None."""
        return None

    @property
    def mix(self) -> Mix | None:
        """How an ensemble mixes network and row model; None for any other model."""
        return None

    # --- methods that kinds override

    @abstractmethod
    def answers(self, data: Any, part: Part) -> Forecasts:  # noqa: ANN401
        """Return its forecasts of *part*, with every baseline."""

    def calibrated_forecasts(self, data: Any, part: Part) -> Forecasts:  # noqa: ANN401
        """Return calibrated forecasts of *part*; by default ``answers``."""
        return self.answers(data, part)

    def scaled(self, data: Any) -> Self:  # noqa: ANN401
        """Return a copy with the scales of its forecasts, fitted on the calibration slice."""
        del data
        return self

    def forecaster(self, data: Any) -> Forecaster | None:  # noqa: ANN401
        """Return the forecaster of a run over *data*; None if its forecasts have no explanation."""
        del data
        return None

    @property
    def usually_explained(self) -> int:
        """The default number of bars to explain, which takes minutes."""
        return EXPLAINED_BARS

    def explained(self, data: Any, part: Part, bars: int | None) -> Forecasts | None:  # noqa: ANN401
        """Return a run's forecasts at up to *bars* bars of *part*, as ``explained_rows``.

        None without a forecaster.
        """
        if (forecaster := self.forecaster(data)) is None:
            return None
        horizon = self.horizon
        return explained_rows(
            forecaster,
            [samples.each for samples in data.samples(part)],
            horizon=horizon,
            slope=self.card["calibration"]["slope"][str(horizon)],
            bars=bars or self.usually_explained,
        )

    def pairs(self, data: Any) -> Forecasts | None:  # noqa: ANN401
        """Return forecasts of correlations in the test part; None without a head of them."""
        del data
        return None

    def findings(self, results: dict[str, Any], judgement: Judgement) -> list[str]:
        """Return sentences that follow from the figures *results*; kinds may add figures there.

        *judgement* has the forecasts and the figures of gates.
        """
        gates = judgement.figures
        return cards.sentences(results, gates, horizon=self.horizon, name=self.called)

    # --- the steps

    def calibrated(self, data: Any, *, bars: int | None = None) -> Self:  # noqa: ANN401
        """Return a copy with ``[calibration]`` complete; *bars* bars of the slice are explained."""
        model = self.scaled(data)
        explained = model.explained(data, Part.CALIBRATION, bars)
        if explained is None:
            return model
        return model.with_card(calibration=gates_section(explained, model.card["calibration"]))

    def judge(self, data: Any, *, bars: int | None = None) -> Judgement:  # noqa: ANN401
        """Return the judgement on the test part; *bars* bars are explained for the gates."""
        section, horizon = self.card["calibration"], self.horizon
        table = self.calibrated_forecasts(data, Part.TEST)
        explained = self.explained(data, Part.TEST, bars)
        if explained is None:
            judged = Judgement(table, {"selective": selective_gains(table.at(horizon))}, [])
        else:
            judged = judged_gates(table, explained, section, data.split.second_holdout_ms)
            if not self.shows_gates:
                judged = replace(judged, forecasts=table, explained=None)
        judged = replace(judged, pairs=self.pairs(data))
        results = figures(table, self.called) | paired_figures(table, leave=self.members)
        results["gates"] = judged.figures
        sentences = self.findings(results, judged)
        if judged.pairs is not None:
            results["correlation"] = correlation_figures(judged.pairs)
            sentences += correlation_sentences(judged.pairs, horizon=horizon)
        return replace(judged, figures=results, sentences=[*sentences, *judged.sentences])

    def evaluated(self, data: Any, *, bars: int | None = None) -> Self:  # noqa: ANN401
        """Return a copy with figures and sentences of the test part.

        An untrained model has no figures, and the card says why.
        """
        stopped = [self.stopped] if self.stopped else []
        if untrained := data.untrained():
            model = {**self.card["model"], "trained": False}
            honesty = {"sentences": [*untrained, *stopped]}
            return self.with_card(model=model, honesty=honesty)
        judgement = self.judge(data, bars=bars)
        return self.with_card(
            calibration=judgement.calibration or self.card["calibration"],
            honesty={"sentences": [*judgement.sentences, *stopped]},
            figures=judgement.figures,
        )

    def save(self, folder: Path, data: Any) -> Checkpoint:  # noqa: ANN401
        """Write the checkpoint with its baselines; return it."""
        return save_judged(folder, self.tensors, self.card, data.fitted)
