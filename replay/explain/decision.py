"""One decision as stored, and what would have flipped it; needs no torch.

A margin is the distance from a gate's threshold, positive if the gate passed: in the units of the
measure, and as a share of the range from the measure's lowest value to the threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tracepaper.daemon.config.values import MODEL_INPUTS
from tracepaper.replay.explain.liquidations import Liquidation, liquidations_of
from tracepaper.replay.explain.place import no_such_decision
from tracepaper.replay.explain.position import orders_after, row_text
from tracepaper.replay.explain.warming import Warming, warming_of, warming_sentence
from tracepaper.replay.report.honesty import entropy_sentence
from tracepaper.replay.report.listed_orders import of_decision
from tracepaper.replay.report.states import LastingState, lasting_states
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.allocation import ERROR, GAINED, WeightRule
from tracepaper.strategies.api.model import DataSource
from tracepaper.strategies.api.strategy import MOVES_WITH, SHARE_OF
from tracepaper.strategies.builtin import BAND, TREND, WITHOUT_ANSWER
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.declared import confidence_entropy, operator, shifted, warm
from tracepaper.strategies.gates.gate import (
    GATES,
    MILLISECONDS,
    QUOTE_CURRENCY,
    SHARE_OF_PEAK,
    measured,
    refusal,
    verdict,
)
from tracepaper.strategies.position_text import FLAT
from tracepaper.strategies.time_buckets import content_share
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Command
from tracepaper.strategies.units import count_of, iso, number, percent


@dataclass(frozen=True)
class StoredDecision:
    """The rows that one decision left in the views, by column name."""

    run: Row  # of ``v_runs``
    decision: Row  # of ``v_decisions``
    gates: tuple[Row, ...]  # of ``v_gates``, in the gates' order
    buckets: tuple[Row, ...]  # of ``v_explanations``, newest first; none without an attribution
    notes: tuple[Row, ...] = ()  # of ``v_notes``, as the strategy wrote them
    orders: tuple[Row, ...] = ()  # of ``v_orders``: those that its list sent or canceled
    liquidations: tuple[Liquidation, ...] = ()  # since the previous decision, with this bar's
    halted_by: Command | None = None  # the operator's command that refused it
    card: Mapping[str, Any] = field(default_factory=dict)
    """Stored card of the model that decided, if it attended or the entropy gate judged."""
    states: tuple[LastingState, ...] = ()  # the halts that held the run at this decision
    warming: Warming | None = None  # by the run's daemon, if the gate warm refused
    position: str = FLAT  # in the decision's instrument after its step, with what protects it

    @property
    def has_forecast(self) -> bool:
        """Whether a model answered for this bar."""
        return self.decision["horizon"] is not None

    @property
    def _asks(self) -> DataSource | None:
        """The data that the strategy gives its model; None if it needs no model."""
        return MODEL_INPUTS.get(self.run["strategy"])

    @property
    def trend(self) -> str | None:
        """How the strategy trend decided; None for other strategies."""
        if self.run["strategy"] != TREND:
            return None
        noted = self._noted_numbers
        if TREND not in noted:
            return "The trend is decided at the close of each hour; in between the target stays."
        factor = ""
        lowest = 0 if json.loads(self.run["config"])["strategy"]["long_only"] else -1
        if (expected := noted.get("volatility")) is not None:
            target = percent(noted["target_volatility"], 1)
            factor = f" times min(1, {target} ÷ {percent(expected, 1)} a year)"
        sentence = (
            f"The trend is {noted[TREND]:+.4f}, the mean of its distances, each clipped to "
            f"[{lowest}, 1]. The target is this share of a full position{factor}: "
            f"{noted['size']:+.4f}."
        )
        if (band := noted.get(BAND)) is not None:
            sentence += f" A position within {band:.4f} of the target is kept."
        if self.has_forecast:
            sentence += " The forecast's direction is not used: the model can only veto."
        return sentence

    @property
    def entropy_worth(self) -> str:
        """The value of the entropy gate on unseen bars, by the card; empty if it did not judge."""
        if all(row["gate"] != confidence_entropy.name for row in self.gates):
            return ""
        figures = self.card.get("figures", {})
        sentence = entropy_sentence(figures.get("gates", {}))
        if not sentence:
            return "The model's card has no figure of what the entropy gate is worth."
        return f"On untouched bars, by the model's card: {sentence[0].lower()}{sentence[1:]}"

    @property
    def halt(self) -> str:
        """Who halted the run, when and why, and what lifts it; empty if no operator did."""
        if (command := self.halted_by) is None:
            return ""
        note = f": {command.note.rstrip('.')}" if command.note else ""
        return (
            f"The operator gave {command.kind} at {iso(command.market_ms)}, {command.giver}{note}. "
            "RESUME lifts it."
        )

    @property
    def reweighting(self) -> str:
        """The expected gain of a portfolio's new weights; empty for other decisions."""
        noted = self._noted_numbers
        for rule, name in GAINED.items():
            if (gain := noted.get(name)) is None or (error := noted.get(name + ERROR)) is None:
                continue
            aim = {
                WeightRule.MINIMUM: "to save {} bp of standard deviation",
                WeightRule.MEAN_VARIANCE: "to gain {} bp of utility after the cost of the trades,",
            }[rule].format(f"{gain:+.2f} ± {error:.2f}")
            return (
                f"The portfolio's new weights were expected {aim} until the next ones, by the "
                "covariance and means that they were computed from, which flatters them."
            )
        return ""

    @property
    def _noted_numbers(self) -> dict[str, Any]:
        return {row["name"]: row["number"] for row in self.notes}

    @property
    def no_attribution(self) -> str | None:
        """Why the decision has no attribution, in one sentence; None if it has one."""
        if self.buckets:
            return None
        if self._asks is DataSource.ORDER_BOOKS:
            return self._order_book_attention
        if not self.run["model_id"]:
            return (
                f"The strategy {self.run['strategy']} uses no model, so there is no attention to "
                "show."
            )
        if (deadline := self.decision["late_deadline_ms"]) is not None:
            return (
                f"The model did not answer within its {deadline:,} ms, so nothing was attributed."
            )
        if self.has_forecast:
            return self._unexplained_forecast
        return self._no_forecast

    @property
    def _unexplained_forecast(self) -> str:
        """That the record does not say where the model looked, in one sentence."""
        if json.loads(self.run["config"])["model"].get("class"):
            return (
                "Its class gives forecasts without an explanation of where it looked; the methods "
                "`attended` and `contributions` explain them (docs/own_models.md, N15)."
            )
        return "This model gives forecasts without an explanation of where it looked."

    @property
    def _no_forecast(self) -> str:
        """Why the model gave no forecast in time, in one sentence."""
        for row in self.notes:
            if row["name"] == WITHOUT_ANSWER and self._asks is DataSource.CLOSES:
                return f"The network has no answer for this close: {row['text']}."
        for gate in self.gates:
            if gate["gate"] == warm.name and not gate["passed"]:
                return (
                    f"The model was not yet warm: {gate['measure']:,.0f} of the "
                    f"{gate['threshold']:,.0f} bars that it needs were available."
                )
        return "The model gave no forecast for this bar, so nothing was attributed."

    @property
    def _order_book_attention(self) -> str:
        """How a decision by order books divided its attention, in a sentence."""
        noted = self._noted_numbers
        if "looked_bid" not in noted:
            return "The strategy orderbook asked no network at this close."
        bid, ask, touch, newest = (
            percent(noted[f"looked_{part}"], 1) for part in ("bid", "ask", "touch", "newest")
        )
        return (
            f"It looked at bids {bid} and asks {ask}, the best levels {touch}, the newest book "
            f"{newest}; --full draws the map of level and time."
        )

    @property
    def explained(self) -> Mapping[str, Any]:
        """How the run explains its decisions: ``[model.explanation]``."""
        section: Mapping[str, Any] = json.loads(self.run["config"])["model"]["explanation"]
        return section

    @property
    def is_relevance(self) -> bool:
        """Whether the buckets are signed shares of relevance, whose sizes sum to 1."""
        return bool(self.explained["method"] == "relevance")

    @property
    def content_share(self) -> float | None:
        """Distance of the rollout from that of uniform attention, 0 to 1 (A13).

        None without a rollout, and for networks or methods without a row by age.
        """
        explained, built = self.explained, self.card.get("architecture", {})
        if not self.buckets or explained["method"] != "rollout" or built.get("mask") != "window":
            return None
        return content_share(
            np.array([row["weight"] for row in self.buckets]),
            self.decision["open_time_ms"] // self.run["interval_ms"],
            bars=self.run["bucket_bars"],
            layers=built["layers"] - int(explained["start_layer"]),
            window=built["window"],
            residual_weight=float(explained["residual"]),
        )

    @property
    def attended_sentence(self) -> str:
        """How a decision over several symbols divided its attention; empty for other strategies."""
        forms: dict[str, Callable[[float], str]] = {
            SHARE_OF: lambda share: percent(share, 1),
            MOVES_WITH: "{:+.2f}".format,
        }
        shares, moves = (
            ", ".join(
                f"{row['name'].removeprefix(prefix)} {text_of(row['number'])}"
                for row in self.notes
                if row["name"].startswith(prefix) and row["number"] is not None
            )
            for prefix, text_of in forms.items()
        )
        if not shares or self._asks is not DataSource.CLOSES:
            return ""
        risk = f" It expects correlations with {moves}." if moves else ""
        return f"It looked at {shares}; --full says at which of their bars.{risk}"


def stored_decision(reader: Reader, columns: RunColumns, sequence: int) -> StoredDecision:
    """Read one decision of a run; raise ``DataInvalid`` if it has no such decision."""
    views, run_id = columns.views, columns.run.run_id
    with views.snapshot():
        decisions = views.rows("v_decisions", sequence=sequence)
        if not decisions:
            raise DataInvalid(no_such_decision(views, sequence))
        run = views.run()
        config = json.loads(run["config"])
        gates = tuple(views.rows("v_gates", sequence=sequence))
        orders: tuple[Row, ...] = ()
        if decisions[0]["action"] == Action.ORDERS:
            orders = of_decision(reader, views, sequence)
        judged = any(row["gate"] == confidence_entropy.name for row in gates)
        # A custom model may give a confidence without an attribution.
        buckets = tuple(
            row
            for row in views.rows("v_explanations", sequence=sequence)
            if row["weight"] is not None
        )
        model = run["model_sha256"] if judged or buckets else ""
        is_cold = decisions[0]["refused_by"] == warm.name and run["ended_ms"] is None
        is_halted = decisions[0]["refused_by"] == operator.name
        held = [row for row in views.rows("v_positions", sequence=sequence) if row["quantity"]]
        return StoredDecision(
            run,
            decisions[0],
            gates,
            buckets,
            tuple(views.rows("v_notes", sequence=sequence)),
            orders,
            liquidations_of(reader, views, decisions[0], config),
            reader.newest_of(run_id, Command, until=sequence) if is_halted else None,
            views.card(model),
            tuple(each for each in lasting_states(columns, until=sequence) if each.is_halt),
            warming_of(reader, run_id, decisions[0]["instrument"]) if is_cold else None,
            row_text(columns, held[0], orders_after(reader, run_id, sequence)) if held else FLAT,
        )


def verdict_of(decision: Mapping[str, Any]) -> tuple[str, str]:
    """Return the gates' verdict on a row of ``v_decisions``, and its reason if that says more."""
    refused_by, reason = decision["refused_by"], decision["reason"]
    words = verdict(Action(decision["action"]), refused_by, reason)
    return words, "" if reason in (words, refusal(refused_by or "")) else reason


@dataclass(frozen=True)
class GateMargin:
    """Distance of one gate from its threshold; ``margin`` is None if the measure is."""

    gate: str
    measure: float | None
    threshold: float
    passed: bool
    unit: str
    meaning: str  # of the measure
    margin: float | None  # by how much it passed; negative if it failed
    share: float | None  # margin ÷ (threshold − lowest value of the measure); None if that is 0

    @property
    def is_gradual(self) -> bool:
        """Whether the distance is comparable with another gate's.

        The count of bars stops at the warm-up, so a passed ``warm`` has no distance.
        """
        gate = GATES[self.gate]
        is_settled = gate.is_switch or (gate.is_capped and self.passed)
        return self.share is not None and not is_settled


@dataclass(frozen=True)
class ForecastSide:
    """The side of the forecast at the gates' horizon, and its distance from the other side."""

    horizon: int  # bars
    side: str  # LONG, SHORT, or HOLD if mean_return and lean disagree
    mean_return: float  # log return; its sign is that of the side
    mean_over_stdev: float
    lean: float  # p_up - p_down; its sign is that of the side


@dataclass(frozen=True)
class Counterfactuals:
    """The changes that would have led to the other verdict.

    A refusal needs every gate of ``must_pass`` to pass; an allowed decision needs one gate to fail.
    ``nearest`` is the gradual gate among them that was closest to its threshold.
    """

    allowed: bool
    must_pass: tuple[str, ...]
    nearest: str | None
    gates: tuple[GateMargin, ...]
    side: ForecastSide | None
    sentence: str


@dataclass(frozen=True)
class NearestChange:
    """One change of a decision that did not trade, derived again from the record."""

    what: str  # a key, such as gate.edge; a gate without one; or close
    value: str  # exact decimal text; empty where the gate is left out
    was: str
    trades: bool  # whether an order is sent
    sentence: str


FindNearest = Callable[[Path, str, int], tuple[NearestChange, ...]]
"""Maps database, run id and sequence to the smallest changes that would have traded."""


def counterfactuals_of(stored: StoredDecision) -> Counterfactuals:
    """Return the distances of one decision from the other verdict and from the other side."""
    gates = tuple(_margin(row) for row in stored.gates)
    allowed = bool(stored.decision["allowed"])
    failed = tuple(gate for gate in gates if not gate.passed)
    near = [gate for gate in (gates if allowed else failed) if gate.is_gradual]
    nearest = min(near, key=lambda gate: abs(gate.share or 0.0), default=None)
    is_exit = stored.decision["action"] == Action.FLAT and verdict_of(stored.decision)[1]
    carried_out = " The FLAT was carried out anyway." if is_exit else ""
    return Counterfactuals(
        allowed,
        tuple(gate.gate for gate in failed),
        None if nearest is None else nearest.gate,
        gates,
        _side(stored.decision),
        _allowed_sentence(nearest, failed)
        if allowed
        else _refused_sentence(stored, failed) + carried_out,
    )


def _margin(row: Mapping[str, Any]) -> GateMargin:
    gate, measure, threshold = GATES[row["gate"]], row["measure"], float(row["threshold"])
    margin = None
    if measure is not None:
        margin = measure - threshold if gate.at_least else threshold - measure
    span = abs(threshold - gate.starts_at)
    share = None if margin is None or span == 0 else margin / span
    return GateMargin(
        gate.name, measure, threshold, bool(row["passed"]), gate.unit, gate.meaning, margin, share
    )


def _side(decision: Mapping[str, Any]) -> ForecastSide | None:
    """Return the side of mean return and class probabilities, or None without them."""
    mean, stdev = decision["mean_return"], decision["stdev_return"]
    up, down = decision["p_up"], decision["p_down"]
    if mean is None or stdev is None or up is None or down is None:
        return None
    lean = up - down
    side = "HOLD"
    if mean * lean > 0:
        side = "LONG" if mean > 0 else "SHORT"
    return ForecastSide(decision["horizon"], side, mean, mean / stdev if stdev > 0 else 0.0, lean)


def margin_text(gate: str, margin: float) -> str:
    """Return the size of a margin: no leading zero, and two digits if it is small."""
    size = abs(margin)
    if gate == warm.name:
        return count_of(round(size), "bar")
    if GATES[gate].unit in (MILLISECONDS, QUOTE_CURRENCY, SHARE_OF_PEAK):
        return measured(gate, size)
    if size >= 1 or size == 0:
        return number(size, digits=3)
    digits = 1 - math.floor(math.log10(size))
    return f"{size:.{digits}f}".removeprefix("0")


def missed_text(gate: str, margin: float | None) -> str:
    """Return by how much a gate failed, ``short by .0096``; empty for a switch.

    It is empty also for a warm-up that lacks one bar: so it counts while a timeframe lacks candles.
    """
    if margin is None or GATES[gate].is_switch or (gate == warm.name and margin == -1):
        return ""
    return f"{'short' if GATES[gate].at_least else 'over'} by {margin_text(gate, margin)}"


def _allowed_sentence(near: GateMargin | None, failed: Sequence[GateMargin]) -> str:
    # A failed lasting gate refuses new exposure alone, and this decision asked for none.
    passed = f"No new exposure, which {failed[0].gate} refuses" if failed else "Every gate passed"
    if near is None or near.margin is None:
        return f"{passed}." if failed else f"{passed}, and none of them has a margin."
    spare = margin_text(near.gate, near.margin)
    return f"{passed}; nearest {near.gate}, with {spare} to spare."


def _refused_sentence(stored: StoredDecision, failed: Sequence[GateMargin]) -> str:
    cold = next((failure for failure in failed if failure.gate == warm.name), None)
    if cold is not None and cold.margin:
        return warming_sentence(round(-cold.margin), stored.warming)
    if len(failed) > 1:
        names = ", ".join(failure.gate for failure in failed)
        return f"All of {names} would have had to pass."
    (gate,) = failed
    name, declared = gate.gate, GATES[gate.gate]
    if gate.margin is None:
        return f"The measure of {name} could not be computed."
    if declared.is_switch:  # another sentence names who gave the operator's command
        return "" if name == operator.name else f"{name} has no margin: it passes or it does not."
    size = margin_text(name, gate.margin)
    comparison = "more" if declared.at_least else "less"
    if name == shifted.name:
        return f"It would have passed, had attention moved {size} {comparison} since the last bar."
    return f"It would have passed, had {name} been {size} {comparison}."
