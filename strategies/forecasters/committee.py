"""Committees: a checkpoint beside simple models that are fitted anew, mixed by their losses.

The first member is any checkpoint of bars, as it was trained. The others answer one row of
features: ``har`` and ``glm`` are gamma regressions, on realised volatilities alone and on all
columns, ``tree`` is boosted. Each is fitted anew on a rolling window; a checkpoint holds every
fit with the time from which it answers, so that a bar of the past is answered by what was known
then. Mean, odds, explanation and further heads are the first member's; variance and spread are
the mix's.

The rules are docs/models.md, L66 to L68.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.strategies.api.model import ModelKind, register
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import CheckpointMismatch
from tracepaper.strategies.features.rows import FeatureRows, FeatureSchema, wider
from tracepaper.strategies.forecasters.aggregation import (
    NORMAL_WIDTH,
    Floats,
    MixingRule,
    OnlineMixture,
)
from tracepaper.strategies.forecasters.build import (
    RunOptions,
    build,
    known_schema,
    part_of,
    per_horizon,
    section_of,
    tensors_of,
)
from tracepaper.strategies.forecasters.outputs import require_one_of_each
from tracepaper.strategies.forecasters.tabular import (
    GlmModel,
    RowModel,
    RowStreams,
    TreeModel,
    network_half,
)
from tracepaper.strategies.types.decisions import Forecast
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import INTERVALS

COMMITTEE: Final = "committee"
"""The kind, and the section of its card."""
BASE: Final = "base"
"""The member that is a checkpoint by itself, the first."""
SIMPLE: Final[Mapping[str, type[GlmModel | TreeModel]]] = {
    "har": GlmModel,
    "glm": GlmModel,
    "tree": TreeModel,
}
"""The members that are fitted anew, and what reads their arrays."""
FITS_MOST: Final = 1_000
SAID: Final = 4
"""Numbers of each member and horizon in ``Forecast.further``: see ``MemberForecasts``."""


class MemberForecasts(NamedTuple):
    """What each member said of a bar and what it counts for, [member, horizon] each."""

    mean_return: Floats
    volatility: Floats
    weight: Floats
    regret: Floats  # what the mix lost more than the member, in units of QLIKE


def member_forecasts(forecast: Forecast) -> MemberForecasts:
    """Read what the members of a committee said, the base first, of what is stored."""
    found = np.frombuffer(forecast.further, dtype="<f4").astype(np.float64)
    return MemberForecasts(*found.reshape(-1, SAID, len(forecast.horizons)).swapaxes(0, 1))


class CommitteeFit(NamedTuple):
    """What the simple members are from a time on."""

    from_ms: int
    models: tuple[RowModel, ...]


class CommitteeForecaster:
    """A committee behind the ``Forecaster`` protocol, for many instruments."""

    def __init__(
        self,
        base: Forecaster,
        fits: Sequence[CommitteeFit],
        rule: MixingRule,
        *,
        members: Sequence[str],
        schema: FeatureSchema,
        interval_ms: int,
        identity: tuple[str, str],
    ) -> None:
        """Mix *base* with *fits*, oldest first; *identity* is the id and SHA-256 of the whole."""
        self.base, self.fits, self.rule = base, tuple(fits), rule
        self.members = tuple(members)
        self.member_shape = (len(self.members), SAID)
        self.schema = schema
        self.model_id, self.model_sha256 = identity
        self.context = rule.bars(interval_ms) + max(base.context, schema.lookback)
        self.horizons = base.horizons
        self.calibration = base.calibration
        self.mode = base.mode
        self.device = base.device
        self.dtype = base.dtype
        self.threads = base.threads
        self.backend = base.backend
        self.causal = base.causal
        self.scanned_at_once = base.scanned_at_once
        self.measures = base.measures | {"stdev_return", "volatility"}
        self.is_outside = False
        self._interval_ms = interval_ms
        self._starts = np.array([fit.from_ms for fit in self.fits], dtype=np.int64)
        self._roots = np.sqrt(self.horizons)
        self._computed_by = _rows_of(base, schema)
        self._rows = RowStreams(schema)
        self._mixtures: dict[str, OnlineMixture] = {}
        self._counts: dict[str, int] = {}

    def warm(self, instrument: str, bars: Sequence[Bar]) -> None:
        """Forget *instrument*, then take in *bars* (oldest first); the last ``context`` matter."""
        self.base.warm(instrument, [])
        self._rows.of(instrument).clear()
        self._mixture(instrument).clear()
        self._counts[instrument] = 0
        bars = bars[-self.context :]
        for start in range(0, len(bars), self.scanned_at_once):
            part = bars[start : start + self.scanned_at_once]
            if self.causal:
                self.scan(part)
            else:
                for bar in part:
                    self.step(bar)

    def step(self, bar: Bar) -> Forecast | None:
        """Take in one bar; return its forecast, or None while fewer than ``context`` are known."""
        return self.predict_many([bar])[0]

    def predict_many(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in one bar of each of several instruments, as the base does."""
        require_one_of_each(bars)
        said = self.base.predict_many(bars)
        source = self._computed_by
        taken = self._rows.take_one_of_each(bars) if source is None else source.newest
        return self._answers(bars, said, taken)

    def scan(self, bars: Sequence[Bar]) -> list[Forecast | None]:
        """Take in many known bars of one instrument, as the base does.

        Raises ``InvariantBroken`` where the base is not causal.
        """
        if not bars:
            return []
        said = self.base.scan(bars)
        source = self._computed_by
        if source is None:
            taken, _ = self._rows.of(bars[0].instrument).take_all(bars)
        else:
            taken = source.newest
        return self._answers(bars, said, taken)

    def explain(self, instrument: str) -> Any:  # noqa: ANN401 - what the base says
        """Return where the base looked at *instrument*'s last decision, bar by bar."""
        return self.base.explain(instrument)  # type: ignore[attr-defined]

    def _mixture(self, instrument: str) -> OnlineMixture:
        if instrument not in self._mixtures:
            self._mixtures[instrument] = OnlineMixture(
                self.rule, self.horizons, len(self.members), self._interval_ms
            )
            self._counts[instrument] = 0
        return self._mixtures[instrument]

    def _answers(
        self, bars: Sequence[Bar], said: Sequence[Forecast | None], taken: FeatureRows
    ) -> list[Forecast | None]:
        """Mix what the base *said* of *bars*, whose rows are the last ones of *taken*."""
        first = len(bars) - len(taken.values)  # bars before it have no row
        rows = taken.values[:, : len(self.schema.names)]
        whole = taken.complete(self.schema)
        closes = np.array([bar.closed_ms for bar in bars[first:]], dtype=np.int64)
        fitted = np.searchsorted(self._starts, closes, side="right") - 1
        simple = self._simple(rows, taken.sigma, np.where(whole, fitted, -1))
        found: list[Forecast | None] = []
        for at, (bar, one) in enumerate(zip(bars, said, strict=True)):
            row = at - first
            is_known = one is not None and row >= 0 and whole[row] and fitted[row] >= 0
            found.append(self._mixed(bar, one if is_known else None, simple, row, taken.sigma))
        return found

    def _simple(
        self, rows: NDArray[np.float32], sigma: Floats, fitted: NDArray[np.int64]
    ) -> Floats:
        """Ask the simple members: [row, member, 2, horizon], mean and log variance of the return.

        *fitted* [row] are the places of the fits that answer; below 0 there is none.
        """
        found = np.full((len(rows), len(self.members) - 1, 2, len(self.horizons)), np.nan)
        roots = sigma[:, None] * self._roots
        for place in np.unique(fitted[fitted >= 0]).tolist():
            chosen = np.flatnonzero(fitted == place)
            for number, model in enumerate(self.fits[place].models):
                mean, log_variance = model.answer(rows[chosen])
                found[chosen, number, 0] = mean * roots[chosen]
                found[chosen, number, 1] = log_variance + 2.0 * np.log(roots[chosen])
        return found

    def _mixed(
        self, bar: Bar, said: Forecast | None, simple: Floats, row: int, sigma: Floats
    ) -> Forecast | None:
        """Take in one bar; mix what is said of it, None where a member lacks its history."""
        instrument, count = bar.instrument, len(self.horizons)
        mixture = self._mixture(instrument)
        logs = np.full((count, len(self.members)), np.nan)
        mean, scale = np.full(count, np.nan), np.nan
        if said is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                logs[:, 0] = 2.0 * np.log(said.volatility)
            logs[:, 1:] = simple[row, :, 1].T
            mean, scale = np.array(said.mean_return), float(sigma[row])
        mixed = mixture.step(bar.open_time_ms, float(bar.close), logs, mean, scale)
        self._counts[instrument] += 1
        if said is None or self._counts[instrument] < self.context:
            return None
        volatility = np.exp(0.5 * mixed.log_variance)
        own = np.empty((len(self.members), SAID, count), dtype="<f4")
        own[0, 0], own[1:, 0] = mean, simple[row, :, 0]
        own[:, 1] = np.exp(0.5 * logs).T
        own[:, 2], own[:, 3] = mixed.weights.T, mixed.regret.T
        return msgspec.structs.replace(
            said,
            stdev_return=tuple((volatility * (mixed.width / NORMAL_WIDTH)).tolist()),
            volatility=tuple(volatility.tolist()),
            model_id=self.model_id,
            further=own.tobytes(),
        )


def _rows_of(base: Forecaster, schema: FeatureSchema) -> Any:  # noqa: ANN401 - a network's forecaster
    """Return what computes rows whose first columns are those of *schema*; None where none does."""
    network = network_half(base)
    model = getattr(network, "model", None)
    if model is None or not hasattr(network, "newest"):
        return None
    computed: FeatureSchema = model.computed
    is_part = computed.names[: len(schema.names)] == schema.names
    is_same = computed.schema_id == schema.schema_id or (
        is_part and wider(computed, schema).schema_id == computed.schema_id
    )
    return network if is_same and computed.covariates is None else None


# ---------------------------------------------------------------- from a card


def mixing_rule(card: Mapping[str, Any], horizons: tuple[int, ...]) -> MixingRule:
    """Read how the committee of *card* mixes; raise ``CheckpointMismatch`` for what is no rule."""
    section = section_of(card, COMMITTEE)
    memory_ms, half_life_ms = section.get("memory_ms"), section.get("half_life_ms")
    share = section.get("share")
    if (
        not (isinstance(memory_ms, int) and memory_ms > 0)
        or not (isinstance(half_life_ms, int) and half_life_ms > 0)
        or not (isinstance(share, float) and 0 <= share < 1)
    ):
        raise CheckpointMismatch(
            "The card's [committee] must have memory_ms, half_life_ms and share; train it again."
        )
    floors, widths = (per_horizon(section.get(name), horizons) for name in ("floors", "widths"))
    if min(*floors, *widths) <= 0:
        raise CheckpointMismatch(
            "The card's committee.floors and committee.widths must be above 0; train it again."
        )
    return MixingRule(memory_ms, half_life_ms, share, floors, widths)


def committee_fits(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], schema: FeatureSchema, horizons: int
) -> tuple[CommitteeFit, ...]:
    """Read the fits of *card*, oldest first; raise ``CheckpointMismatch`` for what does not fit."""
    section = section_of(card, COMMITTEE)
    members, listed = section.get("members"), section.get("fits")
    if not (
        isinstance(members, list)
        and members[:1] == [BASE]
        and len(members) > 1
        and set(members[1:]) <= set(SIMPLE)
        and len(set(members)) == len(members)
    ):
        raise CheckpointMismatch(
            f"The card's committee.members must be {BASE} and some of {', '.join(SIMPLE)}; "
            "train it again."
        )
    if not (isinstance(listed, list) and 0 < len(listed) <= FITS_MOST):
        raise CheckpointMismatch(
            f"The card's committee.fits must list 1 to {FITS_MOST} fits; train it again."
        )
    found: list[CommitteeFit] = []
    for number, fit in enumerate(listed):
        from_ms = fit.get("from_ms") if isinstance(fit, Mapping) else None
        if type(from_ms) is not int or (found and from_ms <= found[-1].from_ms):
            raise CheckpointMismatch(
                "The card's committee.fits must have rising times from_ms; train it again."
            )
        models = tuple(
            SIMPLE[name](_arrays(tensors, number, name), len(schema.names), horizons)
            for name in members[1:]
        )
        found.append(CommitteeFit(from_ms, models))
    return tuple(found)


def _arrays(tensors: Mapping[str, Tensor], number: int, member: str) -> dict[str, NDArray[Any]]:
    parts = tensors_of(tensors, f"{number}.{member}")
    return {name: tensor.numpy() for name, tensor in parts.items()}


def _build(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], options: RunOptions
) -> CommitteeForecaster:
    given = {name: getattr(options, name) for name in options.__dataclass_fields__}
    base = build(part_of(card, BASE), tensors_of(tensors, BASE), **given)
    schema = known_schema(card)
    interval_ms = INTERVALS.get(str(section_of(card, "market").get("interval")), 0)
    if not interval_ms:
        raise CheckpointMismatch("The card's market.interval is none; train it again.")
    identity = section_of(card, "model")
    return CommitteeForecaster(
        base,
        committee_fits(card, tensors, schema, len(base.horizons)),
        mixing_rule(card, base.horizons),
        members=section_of(card, COMMITTEE)["members"],
        schema=schema,
        interval_ms=interval_ms,
        identity=(str(identity.get("id", "")), str(identity.get("sha256", ""))),
    )


COMMITTEE_KIND: Final = register(
    ModelKind(
        COMMITTEE,
        "a checkpoint beside simple models that are fitted anew, mixed by their losses",
        build=_build,
        members=(BASE,),
        is_experimental=False,  # its base is listed
    )
)
