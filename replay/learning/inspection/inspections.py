"""Inspections of a checkpoint beyond its figures: context, deletion, permutation, attribution.

Every share is judged on the same decisions, so that differences are paired. Sources: deletion and
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
from tracepaper.replay.learning.statistics import (
    COVERAGE,
    estimate,
)
from tracepaper.replay.learning.windows import predict
from tracepaper.strategies.attention.propagation import relevance, relevance_rules
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.attribution import PATH_NODES, integrated_gradients
from tracepaper.strategies.forecasters.tabular import TrainedRows
from tracepaper.strategies.networks.architecture import Network
from tracepaper.strategies.networks.keys import nearest
from tracepaper.strategies.units import DAY_MS

PARTS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Divisors of the window; one that leaves less than a bar leaves one."""


def seeing(subject: Subject, network: Network, decision: DecidedBar, bars: int) -> NetworkForecast:
    """Return the forecast of *decision* when *network* sees the last *bars* rows alone.

    An ensemble's row model sees its own row whatever they are.
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
    """Return QLIKE and sign over *count* decisions by the share of the window that is seen."""
    network = subject.need_network("--inspect context")
    decisions = subject.decisions(count)
    parts = [
        (members[0].samples, np.array([decision.row for decision in members]))
        for _, group in groupby(decisions, key=lambda decision: id(decision.samples))
        if (members := list(group))
    ]
    forecasts: Forecasts | None = None
    field = network.config.receptive_field
    parts_of = {max(field // part, 1): part for part in reversed(PARTS)}  # a number of bars once
    for bars, part in sorted(parts_of.items(), reverse=True):
        fields: list[Fields] = []
        for samples, ids in parts:
            each = [seeing(subject, network, DecidedBar(samples, at), bars) for at in ids.tolist()]
            mean, logs = (np.concatenate(of) for of in zip(*each, strict=True))
            fields.append({"mean": mean, "variance": np.exp(logs)})
        rows = forecasts_at(subject, parts, fields)
        forecasts = rows if forecasts is None else forecasts.join(rows, f"1/{part}: {bars} bars")
    assert forecasts is not None
    how = (
        "its stream restarted so many bars before the decision"
        if network.takes_any_length
        else "all earlier rows neutral, the mean of each feature over the training part"
    )
    of_mix = ""
    if subject.mix is not None:
        of_mix = " The variance is the ensemble's, whose row model sees its row as it is."
    note = f"A part of the window is seen alone: {how}.{of_mix} The model sees it all."
    return [
        forecaster_table(
            "ablation",
            f"Context ablation, {len(decisions)} decisions of {len(np.unique(forecasts.day))} days",
            forecasts,
            {LOSSES[key].title: LOSSES[key] for key in COMPARED},
            of="figure",
            others=forecasts.compared,
            notes=[note, NOTE],
        )
    ]


def forecasts_at(
    subject: Subject, parts: Sequence[tuple[Samples, Ids]], fields: Sequence[Fields] = ()
) -> Forecasts:
    """Return the labelled rows of *parts* with the subject's answers, or with *fields*."""
    fields = fields or [subject.predict(samples.segment, rows) for samples, rows in parts]
    answers = [SegmentFields(*pair, of) for pair, of in zip(parts, fields, strict=True)]
    return forecasts_of(answers, {}, subject.material.horizons)


SHARES: Final = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the window's bars, at least one; an area is the mean over these."""
DRAWS: Final = 4
"""Random orders of each decision; their mean counts as one."""
RANDOM: Final = "random"
DECIDED: Final = "decided bar"
"""The row that tells what the decided bar alone moves."""
_SEED: Final = 20_170_817
_SIDES: Final = ("deletion", "insertion")


class BarOrder(NamedTuple):
    """Past bars of a window by rank, the first one first, and the targets that it is judged by.

    The decided bar is of no order: it outweighs any other, and an order is judged by the rest.
    """

    name: str
    bars: Ids
    targets: tuple[int, ...]


def ranked(scores: Array) -> Ids:
    """Return the bars from the highest score to the lowest; of equal ones the newest first."""
    count = len(scores)
    return count - 1 - np.argsort(-scores[::-1], kind="stable")


def orders(
    subject: Subject, network: Network, decision: DecidedBar, generator: np.random.Generator
) -> list[BarOrder]:
    """Return every order of the bars before the decided one, and that bar alone."""
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
            given = window.clone().requires_grad_()
            with relevance_rules(network):
                scores = relevance(answer(given[None])[0], given).sum(dim=1).abs().cpu().numpy()
            candidates.append(BarOrder("relevance", ranked(scores[:-1]), (at,)))
    return candidates


def curves(subject: Subject, network: Network, decision: DecidedBar, bars: Ids) -> Array:
    """Return how far the forecast moved, [side, target, share], as *bars* are taken or given."""
    count = network.config.receptive_field
    window = decision.rows(count)
    changed = np.repeat(window[None], 2 * len(SHARES), axis=0)
    for at, share in enumerate(SHARES):
        first, rest = np.split(bars, [max(round(share * len(bars)), 1)])
        changed[at, first] = subject.neutral
        changed[len(SHARES) + at, rest] = subject.neutral
    every = np.concatenate([window[None], changed])
    forecasts = ask(network, every, decision.positions(count)).targets(subject.column)
    moved: Array = np.abs(forecasts[:, 1:] - forecasts[:, :1]).reshape(len(TARGETS), 2, len(SHARES))
    return moved.swapaxes(0, 1)


def perturbations(subject: Subject, count: int) -> list[Table]:
    """Return areas and curves over *count* decisions, in orders that are paired by decision."""
    network = subject.need_network("--inspect deletion")
    decisions = subject.decisions(count)
    by_order = defaultdict[tuple[str, int], list[Array]](list)  # of an order and a target
    for number, decision in enumerate(decisions):
        drawn = defaultdict[tuple[str, int], list[Array]](list)
        for order in orders(subject, network, decision, np.random.default_rng((_SEED, number))):
            moved = curves(subject, network, decision, order.bars)
            for target in order.targets:
                drawn[order.name, target].append(moved[:, target])
        for key, several in drawn.items():
            by_order[key].append(np.mean(several, axis=0))
    every = sorted(by_order.items(), key=lambda item: item[0][1])
    measured = {key: np.stack(each) for key, each in every}  # [decision, side, share]
    return [_areas(subject, measured, decisions), _points(measured, decisions)]


def _areas(
    subject: Subject, measured: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]
) -> Table:
    """Return the areas of every order, and their differences from random and recency.

    Better than recency is what differs from it by two standard errors on both sides.
    """
    days = days_of(decisions)
    count = len(np.unique(days))
    areas = {key: moved.mean(axis=2) for key, moved in measured.items()}  # [decision, side]
    rows: list[dict[str, Value]] = []
    better: list[str] = []
    for (name, target), area in areas.items():
        row: dict[str, Value] = {"of": TARGETS[target], "order": name}
        # What one bar alone gives is no insertion of a share, and no order's rival.
        is_alone, against = name == DECIDED, []
        for side, (word, sign) in enumerate(zip(_SIDES, (1.0, -1.0), strict=True)):
            row[word] = None if is_alone and side else estimate(area[:, side], days)
            for other in (RANDOM, "recency"):
                value, error = estimate(area[:, side] - areas[other, target][:, side], days)
                row[f"{word} - {other}"] = None if is_alone else (value, error)
            against.append(error is not None and sign * value > 2 * error)  # the last, recency
        if name not in {RANDOM, "recency", DECIDED} and all(against):
            better.append(f"{name} (of the {TARGETS[target]})")
        rows.append(row)
    words = "No order beats recency by both deletion and insertion."
    if better:
        words = f"Better than recency by deletion and insertion: {', '.join(sorted(better))}."
    return table_of_rows(
        "explanations",
        f"Deletion and insertion of bars{subject.of_network}, {len(decisions)} decisions of "
        f"{count} days",
        f"{words} A neutral row is the mean of each feature over the"
        " training part. Areas are means over"
        f" 1/64 to 1/2 of the past bars; the decided bar stays, and is a row of its own. Random is"
        f" the mean of {DRAWS} draws. An order that finds"
        " what matters has more deletion than random, and less insertion.",
        rows,
    )


def _points(measured: dict[tuple[str, int], Array], decisions: Sequence[DecidedBar]) -> Table:
    """Return the curves, a row an order, side and target."""
    days = days_of(decisions)
    rows: list[dict[str, Value]] = []
    for (name, target), moved in measured.items():
        for side, word in enumerate(_SIDES[: 1 if name == DECIDED else 2]):
            cells = {
                f"1/{round(1 / share)}": estimate(moved[:, side, at], days)
                for at, share in enumerate(SHARES)
            }
            rows.append({"of": TARGETS[target], "order": name, "curve": word, **cells})
    return table_of_rows(
        "explanation_curves",
        "How far the forecast moved, by the share of bars taken (deletion) or given (insertion)",
        "Absolute changes of the log variance, and of the mean in units of σ √h.",
        rows,
    )


BLOCKS_A_DAY: Final = 24
PERMUTATIONS: Final = 2
"""Permutations of each column; a bar's loss is their mean."""
_ENDING: Final = re.compile(r"(_(\d+[mhd]?|z|level|sin|cos))+$")


def families(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the columns that are one measure over several windows, by its name.

    ``return_1`` and ``return_4h`` are ``return``; ``hour_sin`` and ``hour_cos`` are ``hour``.
    """
    by_name: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        by_name.setdefault(_ENDING.sub("", name), []).append(column)
    return {name: columns for name, columns in by_name.items() if len(columns) > 1}


def permutation(segment: Segment, generator: np.random.Generator) -> Ids:
    """Return which row's features each row is given: blocks change places within a day."""
    span_ms = max(DAY_MS, BLOCKS_A_DAY * segment.interval_ms)
    block = segment.open_time_ms // (span_ms // BLOCKS_A_DAY)
    edges = [*np.flatnonzero(np.diff(block, prepend=block[0] - 1)).tolist(), len(block)]
    by_day: dict[int, list[Ids]] = {}
    for start, stop in pairwise(edges):
        by_day.setdefault(int(segment.open_time_ms[start]) // span_ms, []).append(
            np.arange(start, stop)
        )
    sources = np.arange(len(segment))
    # Rows without features stay where they are, so that none is carried into a later row.
    for blocks in by_day.values():
        usable = [rows for rows in blocks if rows[0] >= segment.first]
        if usable:
            order = generator.permutation(len(usable)).tolist()
            sources[np.concatenate(usable)] = np.concatenate([usable[at] for at in order])
    return sources


def feature_permutation(subject: Subject, at_most: int) -> list[Table]:
    """Return the worth of each column and each family, on up to *at_most* bars of the test."""
    parts = subject.labelled(Part.TEST, at_most)
    whole = forecasts_at(subject, parts)
    names = subject.material.schema.names
    single = {name: [column] for column, name in enumerate(names)}
    several = {f"all of {name}": of for name, of in families(names).items()}
    rows: list[dict[str, Value]] = []
    alike: list[str] = []
    for name, columns in {**single, **several}.items():
        changed = list(_changed(parts, columns))
        if all(
            np.array_equal(new.values, samples.segment.values, equal_nan=True)
            for (samples, _), segments in zip(parts, changed, strict=True)
            for new in segments
        ):
            alike.append(name)
            continue
        drawn = [
            forecasts_at(
                subject,
                parts,
                [subject.predict(new, ids) for (_, ids), new in zip(parts, each, strict=True)],
            )
            for each in zip(*changed, strict=True)
        ]
        rows.append({"feature": name, **_losses_added(subject, whole, drawn)})
    main = f"QLIKE {subject.material.times[subject.column]}"
    rows.sort(key=lambda row: -_value(row[main]))
    left = f" Left out, for they do not vary within a day: {', '.join(alike)}." if alike else ""
    return [
        table_of_rows(
            "permutation",
            f"Permutation of features, {sum(len(ids) for _, ids in parts):,} bars of "
            f"{len(np.unique(whole.day))} days",
            f"Blocks of a 24th of a day change places within it, {PERMUTATIONS} draws; how much "
            f"QLIKE rises and the share of right signs falls: above 0 the feature is used.{left}",
            rows,
        )
    ]


def _value(cell: Value) -> float:
    assert isinstance(cell, tuple)
    return cell[0]


def _changed(
    parts: Sequence[tuple[Samples, Ids]], columns: Sequence[int]
) -> Iterator[list[Segment]]:
    """Yield, for each of *parts*, its segment with *columns* permuted together, a draw each."""
    for number, (samples, _) in enumerate(parts):
        segment, segments = samples.segment, []
        for draw in range(PERMUTATIONS):
            order = permutation(segment, np.random.default_rng((_SEED, number, draw)))
            values: Rows = segment.values.copy()
            values[:, columns] = segment.values[order][:, columns]
            segments.append(replace(segment, values=values))
        yield segments


def _losses_added(
    subject: Subject, whole: Forecasts, drawn: Sequence[Forecasts]
) -> dict[str, Value]:
    """Return how much QLIKE rises and the share of right signs falls, at each horizon."""
    cells: dict[str, Value] = {}
    for (horizon, rows), time in zip(whole.by_horizon(), subject.material.times, strict=True):
        for title, name, sign in (("QLIKE", "qlike", 1.0), ("sign", "sign_accuracy", -1.0)):
            terms = METRICS[name].terms
            changed = np.mean([terms(MetricView(draw.at(horizon))) for draw in drawn], axis=0)
            added = sign * (changed - terms(MetricView(rows)))
            counts = np.isfinite(added)
            cells[f"{title} {time}"] = estimate(added[counts], rows.day[counts])
    return cells


# --- others' attributions


GROUPS: Final = 16
"""Blocks of a window's bars, of equal length but for rounding."""
SAMPLES_A_GROUP: Final = 8
"""Of KernelSHAP and LIME: how often the model is asked for each group."""
_AT_ONCE: Final = 8

Answer = Callable[[Tensor], Tensor]
"""[sample, group] presences from 0 to 1 → [sample] answers."""


class Game(NamedTuple):
    """One decision as a function of its groups, beside what we say of each."""

    answer: Answer
    ours: Array  # [group]


class WeightedLinear:
    """Weighted least squares with an intercept, as captum's surrogates ask for it.

    Captum's own need scikit-learn. KernelSHAP is exact with it, LIME has no further penalty.
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
    """Return captum's methods by name: (answer, groups) → attribution [group].

    Raises ``ConfigInvalid`` where captum is missing.
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
        method, given = kind(answer), torch.ones(1, groups)
        options: dict[str, Any] = path
        if kind is not IntegratedGradients:
            method.interpretable_model = WeightedLinear()
            samples = SAMPLES_A_GROUP * groups
            options = {"n_samples": samples, "perturbations_per_eval": _AT_ONCE}
        scores = method.attribute(given, baselines=torch.zeros_like(given), **options)
        return scores[0].detach().double().numpy()

    kinds = {"KernelSHAP": KernelShap, "LIME": Lime}
    if is_smooth:
        kinds = {"integrated gradients": IntegratedGradients, **kinds}
    return {name: partial(attribution, kind) for name, kind in kinds.items()}


def blocks(bars: int) -> Ids:
    """Return the group of each bar of a window, oldest first."""
    return np.arange(bars) * min(GROUPS, bars) // bars


def network_games(subject: Subject, network: Network, decision: DecidedBar) -> list[Game]:
    """Return, for each of ``TARGETS``, a network's decision as a function of blocks of bars."""
    count = network.config.receptive_field
    of_bar, positions, rows = blocks(count), decision.positions(count), decision.rows(count)
    ours = np.bincount(of_bar, attended(network, rows, positions)).astype(np.float64)
    neutral, window = torch.from_numpy(subject.neutral), torch.from_numpy(rows)
    group = torch.from_numpy(of_bar)

    def answer(target: str, present: Tensor) -> Tensor:
        shares = present.float()[:, group][:, :, None]
        whole = answer_of(network, positions, target, subject.column)
        return whole(neutral + shares * (window - neutral)).cpu()

    return [Game(partial(answer, target), ours) for target in TARGETS]


def row_games(subject: Subject, trained: TrainedRows, decision: DecidedBar) -> list[Game]:
    """Return, for each of ``TARGETS``, a row model's decision as a function of its features."""
    row, neutral = (subject.own_rows(of) for of in (decision.rows(1)[0], subject.neutral))
    added, column = trained.model.contributions(row), subject.column

    def answer(place: int, present: Tensor) -> Tensor:
        rows = neutral + present.numpy().astype(np.float32) * (row - neutral)
        return torch.from_numpy(trained.model.answer(rows)[place][:, column].copy())

    # A model answers with the mean first.
    both = zip((1, 0), (added.log_variance[column], added.mean[column]), strict=True)
    return [Game(partial(answer, place), ours) for place, ours in both]


def agreement(ours: Array, theirs: Array) -> float:
    """Return Spearman's correlation of the sizes; 0 where one of them is constant."""
    first, second = rankdata(np.abs(ours)), rankdata(np.abs(theirs))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def attributions(subject: Subject, count: int) -> list[Table]:
    """Return rank correlations over *count* decisions.

    Of an ensemble both members are compared, each by its own.
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
            "--inspect attribution compares with a rollout, and this network has no attention; "
            "leave it out."
        )
    return tables


def _compared(
    games: Callable[[DecidedBar], list[Game]],
    decisions: Sequence[DecidedBar],
    rivals: Mapping[str, Callable[[Answer, int], Array]],
) -> dict[tuple[str, str], list[float]]:
    """Return each decision's agreement by target and method of *rivals*."""
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
        "Spearman's, of sizes, a decision at a time; 0 is what chance gives. What is absent is the"
        f" mean of each feature over the training part; {SAMPLES_A_GROUP} samples a group.",
        rows,
    )


# --- intervals


STEP: Final = 0.005
"""γ of adaptive conformal inference: how far one bar moves the level."""
SCORES_KEPT: Final = 1_000
"""Scores that the adaptive quantile is taken over: the newest."""
PASSES: Final = 20
"""Of MC dropout."""


def interval_width(scores: Array, misses: float = 1.0 - COVERAGE) -> float:
    """Return how many scales to either side cover a next score, but for a share *misses*.

    Source: Vovk, 2005. Infinite where no miss at all may happen or too little is known, zero where
    every bar may be missed.
    """
    if misses >= 1.0:
        return 0.0
    place = int(np.ceil((len(scores) + 1) * (1.0 - misses))) - 1
    if misses <= 0.0 or place >= len(scores):
        return float("inf")
    return float(np.partition(scores, place)[place])


def adaptive_widths(scores: Array, times: Ids, outcome_times: Ids, before: Array) -> Array:
    """Return the adaptive width of each bar of one instrument, [bar], oldest first.

    *times* are those of the decisions and *outcome_times* those at which each score is known;
    both ascend. *before* are scores of the calibration part.
    """
    every, aim, learnt = np.concatenate([before, scores]), 1.0 - COVERAGE, 0
    widths, misses = np.empty(len(scores)), aim  # misses is α_t, the share that is aimed at now
    for at, now in enumerate(times.tolist()):
        while learnt < at and outcome_times[learnt] <= now:
            misses += STEP * (aim - float(scores[learnt] > widths[learnt]))
            learnt += 1
        end = len(before) + learnt
        widths[at] = interval_width(every[max(end - SCORES_KEPT, 0) : end], misses)
    return widths


def intervals(subject: Subject) -> list[Table]:
    """Return the coverage and width of every interval on the test part, in all and by day."""
    test = subject.labelled(Part.TEST)
    before, bars = (
        forecasts_at(subject, parts).at(subject.horizon)
        for parts in (subject.labelled(Part.CALIBRATION), test)
    )
    past_scores, all_scores = _scores(before), _scores(bars)
    names = {"own": t.ppf(0.5 + COVERAGE / 2, bars.value("dof"))}
    fixed, adaptive = np.empty_like(all_scores), np.empty_like(all_scores)
    for asset in np.unique(bars.asset):
        mine, past = bars.asset == asset, before.asset == asset
        learnt = past_scores[past if past.any() else slice(None)]
        fixed[mine] = interval_width(learnt)
        order = np.flatnonzero(mine)[np.argsort(bars.open_ms[mine], kind="stable")]
        adaptive[order] = adaptive_widths(
            all_scores[order], bars.open_ms[order], bars.until_ms[order], learnt
        )
    names |= {"fixed conformal": fixed, "adaptive conformal": adaptive}
    covered = {name: (all_scores <= widths).astype(np.float64) for name, widths in names.items()}
    halves = {name: widths * bars.value("scale") for name, widths in names.items()}
    left = ""
    if subject.network is not None and (dropped := _dropout(subject, subject.network, test)):
        mean, half = dropped
        name = "MC dropout" if subject.mix is None else "MC dropout of the network"
        covered[name] = (np.abs(bars.labels["returns"] - mean) <= half).astype(np.float64)
        halves[name] = half
    else:
        left = " The model was trained without dropout, so it has no MC dropout interval."
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
    by_day: list[dict[str, Value]] = [
        {
            "day": str(np.datetime64(int(number), "D")),
            "bars": int(counts[at]),
            **{name: round(float(shares[at]), 4) for name, shares in daily.items()},
        }
        for at, number in enumerate(days)
    ]
    return [
        table_of_rows(
            "intervals",
            f"Intervals of {COVERAGE:.0%}, {subject.material.times[subject.column]} ahead,"
            f" {len(bars):,} bars of {len(days)} days",
            f"Widths in units of σ √h. Adaptive: γ {STEP:g}, the last {SCORES_KEPT:,} scores that"
            f" were known, begun with the calibration part's.{left}",
            rows,
        ),
        table_of_rows("interval_days", f"Coverage of {COVERAGE:.0%} intervals by day", "", by_day),
    ]


def _scores(rows: Forecasts) -> Array:
    """Return |return - mean| ÷ scale of each row."""
    return np.abs(rows.labels["returns"] - rows.value("mean")) / rows.value("scale")


def _dropout(
    subject: Subject, network: Network, parts: Sequence[tuple[Samples, Ids]]
) -> tuple[Array, Array] | None:
    """Return mean and half width [bar] of MC dropout (Gal and Ghahramani, 2016), if there is any.

    Of the passes' normal mixture: the mean of their variances and the variance of their means.
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


# --- all, by the names that ask for each


INSPECTIONS: Final[Mapping[str, Callable[[Subject, int], list[Table]]]] = {
    "deletion": perturbations,
    "context": context_ablation,
    "permutation": feature_permutation,
    "attribution": attributions,
    "intervals": lambda subject, _: intervals(subject),
}
"""What ``--inspect`` names: each takes the subject and a number of decisions, or bars."""
_DECISIONS: Final = 200


def examined(subject: Subject, counts: Mapping[str, int]) -> Iterator[Table]:
    """Yield the findings of every inspection of *counts*, by name, with its number."""
    for name, inspect in INSPECTIONS.items():
        if name in counts:
            yield from inspect(subject, counts[name])


def read_inspections(texts: Sequence[str]) -> dict[str, int]:
    """Return how many decisions each ``NAME`` or ``NAME=N`` asks for, by name."""
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
