"""Inspections of a checkpoint beyond its figures: context, deletion, permutation, attribution.

All variants are judged on the same decisions, so differences are paired. Sources: deletion and
insertion, Petsiuk, Das and Saenko, 2018; permutation, Breiman, 2001; adaptive conformal inference,
Gibbs and Candès, 2021.

The rules are docs/models.md, L38 to L42.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from scipy.stats import norm, rankdata, t
from torch import Tensor

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.learning.inspection.model import (
    TARGETS,
    DecidedBar,
    Ids,
    NetworkForecast,
    Rows,
    Subject,
    answer_of,
    ask,
    attended,
    days_of,
)
from tracepaper.replay.learning.judge.forecasts import Forecasts, SegmentFields, forecasts_of
from tracepaper.replay.learning.judge.metrics import (
    COMPARED,
    LOSSES,
    METRICS,
    NOTE,
    MetricView,
    forecaster_table,
)
from tracepaper.replay.learning.samples import Fields, Samples
from tracepaper.replay.learning.splits import Part, Segment
from tracepaper.replay.learning.statistics import COVERAGE, estimate
from tracepaper.replay.learning.windows import predict
from tracepaper.replay.report.metrics import is_credible
from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.attribution import PATH_NODES, integrated_gradients
from tracepaper.strategies.forecasters.tabular import TrainedRows
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.keys import nearest
from tracepaper.strategies.units import DAY_MS, percent

PARTS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Divisors of the window; at least one bar remains."""


def forecast_with_context(
    subject: Subject, network: Network, decision: DecidedBar, bars: int
) -> NetworkForecast:
    """Return the forecast of *decision* when *network* sees only the last *bars* rows.

    An ensemble's row model always sees its whole row.
    """
    window, count = decision.rows(bars), bars
    if not network.takes_any_length:
        count = network.config.receptive_field
        window = np.concatenate([np.repeat(subject.neutral[None], count - bars, axis=0), window])
    forecast = ask(network, window[None], decision.positions(count))
    if subject.mix is None:
        return forecast
    assert subject.trained is not None
    _, rows = subject.trained.model.answer(subject.own_rows(decision.rows(1)))
    mixed = subject.mix.log_variance(forecast.log_variance, rows)
    return forecast._replace(log_variance=mixed.astype(np.float32))


def context_ablation(subject: Subject, count: int) -> list[Table]:
    """Return QLIKE and sign over *count* decisions by the share of the window that it sees."""
    network = subject.need_network("--inspect context")
    decisions = subject.decisions(count)
    parts = [
        (members[0].samples, np.array([decision.row for decision in members]))
        for _, group in groupby(decisions, key=lambda decision: id(decision.samples))
        if (members := list(group))
    ]
    forecasts: Forecasts | None = None
    field = network.config.receptive_field
    divisors = {max(field // part, 1): part for part in reversed(PARTS)}  # each length once
    for bars, part in sorted(divisors.items(), reverse=True):
        fields: list[Fields] = []
        for samples, ids in parts:
            each = [
                forecast_with_context(subject, network, DecidedBar(samples, at), bars)
                for at in ids.tolist()
            ]
            mean, logs = (np.concatenate(values) for values in zip(*each, strict=True))
            fields.append({"mean": mean, "variance": np.exp(logs)})
        rows = forecasts_at(subject, parts, fields)
        forecasts = rows if forecasts is None else forecasts.join(rows, f"1/{part}: {bars} bars")
    assert forecasts is not None
    method = (
        "Its stream restarts that many bars before the decision."
        if network.takes_any_length
        else "Earlier rows are neutral: the mean of each feature over the training part."
    )
    of_mix = ""
    if subject.mix is not None:
        of_mix = " The variance is the ensemble's; its row model always sees the whole row."
    note = f"The network sees the last part of its window, the model all of it. {method}{of_mix}"
    return [
        forecaster_table(
            "ablation",
            f"Context ablation, {len(decisions)} decisions of {len(np.unique(forecasts.day))} days",
            forecasts,
            {LOSSES[key].title: LOSSES[key] for key in COMPARED},
            label_column="figure",
            others=forecasts.compared,
            notes=[note, NOTE],
        )
    ]


def forecasts_at(
    subject: Subject, parts: Sequence[tuple[Samples, Ids]], fields: Sequence[Fields] = ()
) -> Forecasts:
    """Return the labelled rows of *parts* with *fields*, by default the subject's answers."""
    fields = fields or [subject.predict(samples.segment, rows) for samples, rows in parts]
    answers = [SegmentFields(*pair, each) for pair, each in zip(parts, fields, strict=True)]
    return forecasts_of(answers, {}, subject.material.horizons)


SHARES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the window's past bars, at least one bar; an area is the mean over these."""
DRAWS: Final = 4
"""Random orders of each decision; their mean counts as one order."""
RANDOM: Final = "random"
DECIDED: Final = "decided bar"
"""The table row for the effect of the decided bar alone."""
_SEED: Final = 20_170_817
_SIDES: Final = ("deletion", "insertion")


class BarOrder(NamedTuple):
    """Past bars of a window, the most important first, and the targets to judge the order by.

    Orders leave out the decided bar, since it outweighs all others.
    """

    name: str
    bars: Ids
    targets: tuple[int, ...]


def ranked(scores: Array) -> Ids:
    """Return the bars from the highest score to the lowest; the newest first among equals."""
    count = len(scores)
    return count - 1 - np.argsort(-scores[::-1], kind="stable")


def orders(
    subject: Subject, network: Network, decision: DecidedBar, generator: np.random.Generator
) -> list[BarOrder]:
    """Return every order of the past bars, and the decided bar as an order of its own."""
    count = network.config.receptive_field
    both = tuple(range(len(TARGETS)))
    past = count - 1
    candidates = [BarOrder("recency", np.arange(past)[::-1], both)]
    candidates += [BarOrder(RANDOM, generator.permutation(past), both) for _ in range(DRAWS)]
    candidates.append(BarOrder(DECIDED, np.array([past]), both))
    rows, positions = decision.rows(count), decision.positions(count)
    window = torch.from_numpy(rows)
    if network.has_attention:
        candidates.insert(
            0, BarOrder("rollout", ranked(attended(network, rows, positions)[:-1]), both)
        )
    neutral = torch.from_numpy(subject.neutral)
    for at, target in enumerate(TARGETS):
        answer = answer_of(network, positions, target, subject.column)
        added = integrated_gradients(
            lambda moved, answer=answer: answer((neutral + moved)[None])[0],  # type: ignore[misc]
            window - neutral,
        )
        scores = added.sum(dim=1).abs().cpu().numpy()
        candidates.append(BarOrder("integrated gradients", ranked(scores[:-1]), (at,)))
        if network.has_attention:
            leaf = window.clone().requires_grad_()
            with relevance_rules(network):
                scores = relevance(answer(leaf[None])[0], leaf).sum(dim=1).abs().cpu().numpy()
            candidates.append(BarOrder("relevance", ranked(scores[:-1]), (at,)))
    return candidates


def curves(subject: Subject, network: Network, decision: DecidedBar, bars: Ids) -> Array:
    """Return the forecast's absolute change [side, target, share].

    Side 0 replaces a share of *bars* by neutral rows; side 1 keeps only that share.
    """
    count = network.config.receptive_field
    window = decision.rows(count)
    changed = np.repeat(window[None], 2 * len(SHARES), axis=0)
    for at, share in enumerate(SHARES):
        first, rest = np.split(bars, [max(round(share * len(bars)), 1)])
        changed[at, first] = subject.neutral
        changed[len(SHARES) + at, rest] = subject.neutral
    rows = np.concatenate([window[None], changed])
    forecasts = ask(network, rows, decision.positions(count)).targets(subject.column)
    moved: Array = np.abs(forecasts[:, 1:] - forecasts[:, :1]).reshape(len(TARGETS), 2, len(SHARES))
    return moved.swapaxes(0, 1)


def perturbations(subject: Subject, count: int) -> list[Table]:
    """Return the areas of deletion and insertion over *count* decisions."""
    network = subject.need_network("--inspect deletion")
    decisions = subject.decisions(count)
    by_order = defaultdict[tuple[str, int], list[Array]](list)  # by (order, target)
    for number, decision in enumerate(decisions):
        drawn = defaultdict[tuple[str, int], list[Array]](list)
        for order in orders(subject, network, decision, np.random.default_rng((_SEED, number))):
            moved = curves(subject, network, decision, order.bars)
            for target in order.targets:
                drawn[order.name, target].append(moved[:, target])
        for key, draws in drawn.items():
            by_order[key].append(np.mean(draws, axis=0))
    by_target = sorted(by_order.items(), key=lambda item: item[0][1])
    changes = {key: np.stack(each) for key, each in by_target}  # [decision, side, share]
    return [_areas(subject, changes, decisions)]


def _areas(
    subject: Subject, changes: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]
) -> Table:
    """Return the areas of every order, and their differences from random and recency.

    An order beats recency if it differs from it credibly on both sides.
    """
    days = days_of(decisions)
    count = len(np.unique(days))
    areas = {key: moved.mean(axis=2) for key, moved in changes.items()}  # [decision, side]
    rows: list[dict[str, Value]] = []
    better: list[str] = []
    for (name, target), area in areas.items():
        row: dict[str, Value] = {"of": TARGETS[target], "order": name}
        # The decided bar alone has no insertion of shares, and is not compared with orders.
        is_alone, beats = name == DECIDED, []
        for side, (word, sign) in enumerate(zip(_SIDES, (1.0, -1.0), strict=True)):
            row[word] = None if is_alone and side else estimate(area[:, side], days)
            for other in (RANDOM, "recency"):
                value, error = estimate(area[:, side] - areas[other, target][:, side], days)
                row[f"{word} - {other}"] = None if is_alone else (value, error)
            beats.append(is_credible(value, error) and sign * value > 0)  # of recency
        if name not in {RANDOM, "recency", DECIDED} and all(beats):
            better.append(f"{name} (of the {TARGETS[target]})")
        rows.append(row)
    words = "No order beats recency by both deletion and insertion."
    if better:
        words = f"Better than recency by deletion and insertion: {', '.join(sorted(better))}."
    return table_of_rows(
        "explanations",
        f"Deletion and insertion of bars{subject.of_network}, {len(decisions)} decisions of "
        f"{count} days",
        f"{words} A neutral row is the mean of each feature over the training part. Areas are means"
        f" over 1/64 to 1/2 of the past bars; the decided bar stays, and has its own row. Random is"
        f" the mean of {DRAWS} draws. A good order has more deletion than random, and less"
        " insertion.",
        rows,
    )


BLOCKS_A_DAY: Final = 24
PERMUTATIONS: Final = 2
"""Permutations of each column; a bar's loss is their mean."""
_ENDING: Final = re.compile(r"(_(\d+[mhd]?|z|level|sin|cos))+$")


def families(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the columns of each measure that has several, by the measure's name.

    ``return_1`` and ``return_4h`` are ``return``; ``hour_sin`` and ``hour_cos`` are ``hour``.
    """
    by_name: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        by_name.setdefault(_ENDING.sub("", name), []).append(column)
    return {name: columns for name, columns in by_name.items() if len(columns) > 1}


def permutation(segment: Segment, generator: np.random.Generator) -> Ids:
    """Return for each row the row to take features from: blocks are permuted within a day."""
    span_ms = max(DAY_MS, BLOCKS_A_DAY * segment.interval_ms)
    block = segment.open_time_ms // (span_ms // BLOCKS_A_DAY)
    edges = [*np.flatnonzero(np.diff(block, prepend=block[0] - 1)).tolist(), len(block)]
    by_day: dict[int, list[Ids]] = {}
    for start, stop in pairwise(edges):
        by_day.setdefault(int(segment.open_time_ms[start]) // span_ms, []).append(
            np.arange(start, stop)
        )
    sources = np.arange(len(segment))
    # Blocks with rows that lack features stay in place, so that no later row lacks them.
    for blocks in by_day.values():
        usable = [rows for rows in blocks if rows[0] >= segment.first]
        if usable:
            order = generator.permutation(len(usable)).tolist()
            sources[np.concatenate(usable)] = np.concatenate([usable[at] for at in order])
    return sources


def feature_permutation(subject: Subject, at_most: int) -> list[Table]:
    """Return the loss added by permuting each column and family, on up to *at_most* test bars."""
    parts = subject.labelled(Part.TEST, at_most)
    original = forecasts_at(subject, parts)
    names = subject.material.schema.names
    single = {name: [column] for column, name in enumerate(names)}
    several = {f"all of {name}": columns for name, columns in families(names).items()}
    rows: list[dict[str, Value]] = []
    constant: list[str] = []
    for name, columns in {**single, **several}.items():
        changed = list(_permuted(parts, columns))
        if all(
            np.array_equal(new.values, samples.segment.values, equal_nan=True)
            for (samples, _), segments in zip(parts, changed, strict=True)
            for new in segments
        ):
            constant.append(name)
            continue
        drawn = [
            forecasts_at(
                subject,
                parts,
                [subject.predict(new, ids) for (_, ids), new in zip(parts, each, strict=True)],
            )
            for each in zip(*changed, strict=True)
        ]
        rows.append({"feature": name, **_losses_added(subject, original, drawn)})
    main = f"QLIKE {subject.material.times[subject.column]}"
    rows.sort(key=lambda row: -_value(row[main]))
    omitted = f" Constant within a day, left out: {', '.join(constant)}." if constant else ""
    return [
        table_of_rows(
            "permutation",
            f"Permutation of features, {sum(len(ids) for _, ids in parts):,} bars of "
            f"{len(np.unique(original.day))} days",
            f"Blocks of a 24th of a day are permuted within the day, {PERMUTATIONS} draws. Values "
            "are the rise of QLIKE and the fall of the share of right signs: above 0 the model "
            f"uses the feature.{omitted}",
            rows,
        )
    ]


def _value(cell: Value) -> float:
    assert isinstance(cell, tuple)
    return cell[0]


def _permuted(
    parts: Sequence[tuple[Samples, Ids]], columns: Sequence[int]
) -> Iterator[list[Segment]]:
    """Yield for each of *parts* its segment with *columns* permuted together, once per draw."""
    for number, (samples, _) in enumerate(parts):
        segment, segments = samples.segment, []
        for draw in range(PERMUTATIONS):
            order = permutation(segment, np.random.default_rng((_SEED, number, draw)))
            values: Rows = segment.values.copy()
            values[:, columns] = segment.values[order][:, columns]
            segments.append(replace(segment, values=values))
        yield segments


def _losses_added(
    subject: Subject, original: Forecasts, drawn: Sequence[Forecasts]
) -> dict[str, Value]:
    """Return the rise of QLIKE and the fall of the share of right signs, at each horizon."""
    cells: dict[str, Value] = {}
    for (horizon, rows), time in zip(original.by_horizon(), subject.material.times, strict=True):
        for title, name, sign in (("QLIKE", "qlike", 1.0), ("sign", "sign_accuracy", -1.0)):
            terms = METRICS[name].terms
            changed = np.mean([terms(MetricView(draw.at(horizon))) for draw in drawn], axis=0)
            added = sign * (changed - terms(MetricView(rows)))
            counts = np.isfinite(added)
            cells[f"{title} {time}"] = estimate(added[counts], rows.day[counts])
    return cells


# --- captum's attributions


GROUPS: Final = 16
"""The number of equal blocks of a window's bars."""
SAMPLES_PER_GROUP: Final = 8
"""Model evaluations of KernelSHAP and LIME for each group."""
_AT_ONCE: Final = 8

Answer = Callable[[Tensor], Tensor]
"""[sample, group] presences from 0 to 1 → [sample] answers."""


class Game(NamedTuple):
    """One decision as a function of its groups, with our attribution of each."""

    answer: Answer
    ours: Array  # [group]


class WeightedLinear:
    """Weighted least squares with an intercept, with the interface of captum's surrogate models.

    It replaces those of captum, which need scikit-learn. KernelSHAP is exact with it; LIME has no
    penalty.
    """

    def fit(self, data: Iterable[Sequence[Tensor]]) -> None:
        """Fit the one batch of [sample, group] inputs, answers and weights of *data*."""
        inputs, answers, weights = next(iter(data))
        root = weights.double().sqrt()[:, None]
        ones = torch.ones_like(answers.double())[:, None]
        design = torch.cat([inputs.double(), ones], dim=1)
        solved = torch.linalg.lstsq(root * design, root * answers.double()[:, None], driver="gelsd")
        self._weights: Tensor = solved.solution[:-1, 0]

    def representation(self) -> Tensor:
        """Return the weight of each group."""
        return self._weights


def methods(*, is_smooth: bool) -> Mapping[str, Callable[[Answer, int], Array]]:
    """Return captum's methods by name: (answer, number of groups) → attribution [group].

    Integrated gradients need *is_smooth*. Raises ``ConfigInvalid`` if captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients, KernelShap, Lime
    except ImportError:
        raise ConfigInvalid(missing_sentence("captum", "--inspect attribution")) from None
    path = {
        "n_steps": PATH_NODES,
        "method": "gausslegendre",
        "internal_batch_size": _AT_ONCE,
    }

    def attribution(kind: type[Any], answer: Answer, groups: int) -> Array:
        method, present = kind(answer), torch.ones(1, groups)
        options: dict[str, Any] = path
        if kind is not IntegratedGradients:
            method.interpretable_model = WeightedLinear()
            samples = SAMPLES_PER_GROUP * groups
            options = {"n_samples": samples, "perturbations_per_eval": _AT_ONCE}
        scores = method.attribute(present, baselines=torch.zeros_like(present), **options)
        return scores[0].detach().double().numpy()

    kinds = {"KernelSHAP": KernelShap, "LIME": Lime}
    if is_smooth:
        kinds = {"integrated gradients": IntegratedGradients, **kinds}
    return {name: partial(attribution, kind) for name, kind in kinds.items()}


def blocks(bars: int) -> Ids:
    """Return the group of each bar of a window, oldest first."""
    return np.arange(bars) * min(GROUPS, bars) // bars


def network_games(subject: Subject, network: Network, decision: DecidedBar) -> list[Game]:
    """Return for each of ``TARGETS`` a network's decision as a function of blocks of bars."""
    count = network.config.receptive_field
    of_bar, positions, rows = blocks(count), decision.positions(count), decision.rows(count)
    ours = np.bincount(of_bar, attended(network, rows, positions)).astype(np.float64)
    neutral, window = torch.from_numpy(subject.neutral), torch.from_numpy(rows)
    group = torch.from_numpy(of_bar)

    def answer(target: str, present: Tensor) -> Tensor:
        shares = present.float()[:, group][:, :, None]
        network_answer = answer_of(network, positions, target, subject.column)
        return network_answer(neutral + shares * (window - neutral)).cpu()

    return [Game(partial(answer, target), ours) for target in TARGETS]


def row_games(subject: Subject, trained: TrainedRows, decision: DecidedBar) -> list[Game]:
    """Return for each of ``TARGETS`` a row model's decision as a function of its features."""
    row, neutral = (subject.own_rows(row) for row in (decision.rows(1)[0], subject.neutral))
    added, column = trained.model.contributions(row), subject.column

    def answer(place: int, present: Tensor) -> Tensor:
        rows = neutral + present.numpy().astype(np.float32) * (row - neutral)
        return torch.from_numpy(trained.model.answer(rows)[place][:, column].copy())

    # Row models answer (mean, log variance); targets are in the opposite order.
    targets = zip((1, 0), (added.log_variance[column], added.mean[column]), strict=True)
    return [Game(partial(answer, place), ours) for place, ours in targets]


def agreement(ours: Array, theirs: Array) -> float:
    """Return Spearman's correlation of absolute values; 0 if either side is constant."""
    first, second = rankdata(np.abs(ours)), rankdata(np.abs(theirs))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def attributions(subject: Subject, count: int) -> list[Table]:
    """Return rank correlations of our attributions with captum's over *count* decisions.

    Each member of an ensemble is compared separately.
    """
    network, trained, tables = subject.network, subject.trained, list[Table]()
    decisions = subject.decisions(count)
    if network is not None and network.has_attention:
        games = partial(network_games, subject, network)
        agreed = _compared(games, decisions, methods(is_smooth=True))
        tables.append(_agreements(agreed, decisions, f"rollout over {GROUPS} blocks of bars"))
    if trained is not None:
        games = partial(row_games, subject, trained)
        agreed = _compared(games, decisions, methods(is_smooth=False))
        of_rows = _agreements(agreed, decisions, "exact contributions of features")
        key = "attributions_rows" if tables else "attributions"
        tables.append(replace(of_rows, key=key))
    if not tables:
        raise ConfigInvalid(
            "--inspect attribution needs a rollout, and this network has no attention; leave it "
            "out."
        )
    return tables


def _compared(
    games: Callable[[DecidedBar], list[Game]],
    decisions: Sequence[DecidedBar],
    rivals: Mapping[str, Callable[[Answer, int], Array]],
) -> dict[tuple[str, str], list[float]]:
    """Return each decision's agreement with *rivals*, by (target, method)."""
    torch.manual_seed(_SEED)
    agreed: dict[tuple[str, str], list[float]] = {}
    for decision in decisions:
        for target, game in zip(TARGETS, games(decision), strict=True):
            for name, method in rivals.items():
                theirs = method(game.answer, len(game.ours))
                agreed.setdefault((target, name), []).append(agreement(game.ours, theirs))
    return agreed


def _agreements(
    agreed: Mapping[tuple[str, str], list[float]], decisions: Sequence[DecidedBar], ours: str
) -> Table:
    days = days_of(decisions)
    rows: list[dict[str, Value]] = [
        {"of": target, "method": name, "rank correlation": estimate(np.array(values), days)}
        for (target, name), values in agreed.items()
    ]
    return table_of_rows(
        "attributions",
        f"Rank correlation of the {ours} with captum's attributions, {len(decisions)} decisions"
        f" of {len(np.unique(days))} days",
        "Spearman's correlation of absolute values in each decision; chance gives 0. An absent"
        " feature has its mean over the training part;"
        f" {SAMPLES_PER_GROUP} samples per group.",
        rows,
    )


# --- intervals


STEP: Final = 0.005
"""γ of adaptive conformal inference: the level's step after one bar."""
SCORES_KEPT: Final = 1_000
"""The number of newest scores in the adaptive quantile."""
PASSES: Final = 20
"""Passes of MC dropout."""


def interval_width(scores: Array, misses: float = 1.0 - COVERAGE) -> float:
    """Return the half width, in scales, that a next score exceeds with probability *misses*.

    Source: Vovk, 2005. Infinite if *misses* is 0 or there are too few scores, zero if it is 1.
    """
    if misses >= 1.0:
        return 0.0
    place = int(np.ceil((len(scores) + 1) * (1.0 - misses))) - 1
    if misses <= 0.0 or place >= len(scores):
        return float("inf")
    return float(np.partition(scores, place)[place])


def adaptive_widths(scores: Array, times: Ids, outcome_times: Ids, before: Array) -> Array:
    """Return the adaptive width of each bar of one instrument, [bar], oldest first.

    *times* are those of the decisions. *outcome_times* are those at which each score is known. Both
    ascend. *before* are scores of the calibration part.
    """
    all_scores, target, learnt = np.concatenate([before, scores]), 1.0 - COVERAGE, 0
    widths, misses = np.empty(len(scores)), target  # misses is α_t, the current level
    for at, now in enumerate(times.tolist()):
        while learnt < at and outcome_times[learnt] <= now:
            misses += STEP * (target - float(scores[learnt] > widths[learnt]))
            learnt += 1
        end = len(before) + learnt
        widths[at] = interval_width(all_scores[max(end - SCORES_KEPT, 0) : end], misses)
    return widths


def intervals(subject: Subject) -> list[Table]:
    """Return the coverage and width of every interval on the test part."""
    test = subject.labelled(Part.TEST)
    before, bars = (
        forecasts_at(subject, parts).at(subject.horizon)
        for parts in (subject.labelled(Part.CALIBRATION), test)
    )
    past_scores, all_scores = _scores(before), _scores(bars)
    widths = {"own": t.ppf(0.5 + COVERAGE / 2, bars.value("dof"))}
    fixed, adaptive = np.empty_like(all_scores), np.empty_like(all_scores)
    for asset in np.unique(bars.asset):
        inside, past = bars.asset == asset, before.asset == asset
        learnt = past_scores[past if past.any() else slice(None)]
        fixed[inside] = interval_width(learnt)
        order = np.flatnonzero(inside)[np.argsort(bars.open_ms[inside], kind="stable")]
        adaptive[order] = adaptive_widths(
            all_scores[order], bars.open_ms[order], bars.until_ms[order], learnt
        )
    widths |= {"fixed conformal": fixed, "adaptive conformal": adaptive}
    covered = {name: (all_scores <= width).astype(np.float64) for name, width in widths.items()}
    halves = {name: width * bars.value("scale") for name, width in widths.items()}
    no_dropout = ""
    if subject.network is not None and (dropped := _dropout(subject, subject.network, test)):
        mean, half = dropped
        name = "MC dropout" if subject.mix is None else "MC dropout of the network"
        covered[name] = (np.abs(bars.labels["returns"] - mean) <= half).astype(np.float64)
        halves[name] = half
    else:
        no_dropout = " The model was trained without dropout, so it has no MC dropout interval."
    days, day, counts = np.unique(bars.day, return_inverse=True, return_counts=True)
    daily = {name: np.bincount(day, hit) / counts for name, hit in covered.items()}
    rows: list[dict[str, Value]] = [
        {
            "interval": name,
            "coverage": estimate(hit, bars.day),
            "least day": round(float(daily[name].min()), 4),
            "spread of days": round(float(daily[name].std()), 4),
            "median half width": round(float(np.median(halves[name])), 4),
        }
        for name, hit in covered.items()
    ]
    return [
        table_of_rows(
            "intervals",
            f"Intervals of {percent(COVERAGE, 0)}, {subject.material.times[subject.column]} ahead,"
            f" {len(bars):,} bars of {len(days)} days",
            f"Widths in units of σ √h. Adaptive: γ {STEP:g}, the last {SCORES_KEPT:,} known scores,"
            f" at first those of the calibration part.{no_dropout}",
            rows,
        )
    ]


def _scores(rows: Forecasts) -> Array:
    """Return |return - mean| ÷ scale of each row."""
    return np.abs(rows.labels["returns"] - rows.value("mean")) / rows.value("scale")


def _dropout(
    subject: Subject, network: Network, parts: Sequence[tuple[Samples, Ids]]
) -> tuple[Array, Array] | None:
    """Return mean and half width [bar] by MC dropout (Gal and Ghahramani, 2016); None without it.

    The variance of the passes' mixture is the mean of variances plus the variance of means.
    """
    if not network.dropping():
        return None
    torch.manual_seed(_SEED)
    means, variances = [], []
    for _ in range(PASSES):
        fields = [predict(network, s.segment, rows, dropout=True) for s, rows in parts]
        passed = forecasts_at(subject, parts, fields).at(subject.horizon)
        dof = passed.value("dof")
        means.append(passed.value("mean"))
        variances.append(passed.value("scale") ** 2 * dof / (dof - 2.0))
    total = np.mean(variances, axis=0) + np.var(means, axis=0)
    return np.mean(means, axis=0), norm.ppf(0.5 + COVERAGE / 2) * np.sqrt(total)


# --- inspections by name


INSPECTIONS: Final[Mapping[str, Callable[[Subject, int], list[Table]]]] = {
    "deletion": perturbations,
    "context": context_ablation,
    "permutation": feature_permutation,
    "attribution": attributions,
    "intervals": lambda subject, _: intervals(subject),
}
"""The names of ``--inspect``; each function takes the subject and a number of decisions or bars."""
_DECISIONS: Final = 200


def examined(subject: Subject, counts: Mapping[str, int]) -> Iterator[Table]:
    """Yield the tables of every inspection in *counts*, which has its number of decisions."""
    for name, inspect in INSPECTIONS.items():
        if name in counts:
            yield from inspect(subject, counts[name])


def read_inspections(texts: Sequence[str]) -> dict[str, int]:
    """Return the number of decisions of each inspection ``NAME`` or ``NAME=N``, by name."""
    counts = {}
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
        counts[name] = int(count) if equals else _DECISIONS
    return counts
