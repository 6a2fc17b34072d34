"""Boosted trees as plain arrays: exact scores and exact Shapley values.

A tree is not walked. Each of its at most 64 leaves is a bit; a node whose row goes right clears
the leaves on its left, and the lowest bit that remains is the leaf (QuickScorer, Lucchese et al.,
SIGIR 2015). The bits that all nodes of one feature clear depend only on how many of that feature's
thresholds the value exceeds, so a table holds them: a row costs one look-up per feature for all
trees together.

The value of a set of features is the mean score of a walk that follows the row at nodes of these
features and, elsewhere, both children by the share of training rows that went each way (TreeSHAP,
path-dependent: Lundberg et al., 2018). A leaf with the value v, reached over D features, gives
feature j

    v (o_j - z_j) ∫₀¹ Π_{i≠j} (o_i t + z_i (1 - t)) dt

where o_i says whether the row satisfies all nodes of feature i on the path, and z_i is the
product of the shares there: the weights k! (D - 1 - k)! ÷ D! of Shapley are the integrals of
tᵏ (1 - t)^(D-1-k). The integrand is a polynomial in t of degree D - 1 that is never negative, so
Gauss and Legendre's rule with half as many points gives it to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.attention import compiled
from tracepaper.strategies.errors import CheckpointMismatch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAVES_MOST: Final = 64
"""Leaves of a tree: the bits of a word."""
_BLOCK_ROWS: Final = 512  # rows scored at once: their leaves stay in the cache


@dataclass(frozen=True, eq=False)
class Trees:
    """Ensembles of trees, tree after tree; the score of an ensemble is the sum of its trees.

    Nodes are [node], numbered from 0, the root, in each tree; a child below zero is the leaf
    ``~child``. A row goes left if its feature is at most the threshold. NaN goes the node's default
    way if the node treats it as missing, and otherwise counts as zero.
    """

    feature: NDArray[np.int32]
    threshold: Floats
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    default_left: NDArray[np.uint8]
    nan_is_missing: NDArray[np.uint8]
    node_rows: Ints  # rows of the training part that reached the node
    value: Floats  # [leaf]
    leaf_rows: Ints  # [leaf]
    leaves: NDArray[np.int32]  # [tree]: one more than its nodes
    trees: NDArray[np.int32]  # [ensemble]

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the trees of stored *arrays*."""
        return cls(**{name: np.ascontiguousarray(arrays[name]) for name in _names()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the argument of ``read``."""
        return {name: getattr(self, name) for name in _names()}

    @property
    def node_starts(self) -> Ints:
        """The place of each tree's first node: [tree]."""
        return np.cumsum(self.leaves - 1, dtype=np.int64) - (self.leaves - 1)

    @property
    def leaf_starts(self) -> Ints:
        """The place of each tree's first leaf: [tree]."""
        return np.cumsum(self.leaves, dtype=np.int64) - self.leaves

    @property
    def ensemble_starts(self) -> Ints:
        """The place of each ensemble's first tree: [ensemble]."""
        return np.cumsum(self.trees, dtype=np.int64) - self.trees

    def ensemble(self, at: int) -> Self:
        """Return ensemble number *at* alone."""
        first = int(self.ensemble_starts[at])
        trees = slice(first, first + int(self.trees[at]))
        before = int(self.leaves[:first].sum(dtype=np.int64))
        count = int(self.leaves[trees].sum(dtype=np.int64))
        leaves = slice(before, before + count)
        nodes = slice(before - first, before - first + count - int(self.trees[at]))
        cut = {"value": leaves, "leaf_rows": leaves, "leaves": trees, "trees": slice(at, at + 1)}
        return type(self)(**{name: getattr(self, name)[cut.get(name, nodes)] for name in _names()})

    def goes_left(self, rows: Floats) -> NDArray[np.bool_]:
        """Return [row, node]: whether each row goes left at the node."""
        values = rows[:, self.feature]
        unknown = np.isnan(values)
        left = np.where(unknown, 0.0, values) <= self.threshold
        return np.where(unknown & (self.nan_is_missing > 0), self.default_left > 0, left)


def _names() -> list[str]:
    return [field.name for field in fields(Trees)]


def joined(parts: Sequence[Trees]) -> Trees:
    """Return the ensembles of all *parts* together."""
    return Trees(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in _names()})


def ordered_leaves(trees: Trees, tree: int) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return a tree's leaves from left to right, and [(first, split, end)] of each node.

    The leaves below a node are those from *first* until *end* in that order, the left ones until
    *split*. Raises ``CheckpointMismatch`` for a node that is reached twice.
    """
    count = int(trees.leaves[tree]) - 1
    start = int(trees.node_starts[tree])
    left = trees.left[start : start + count].tolist()
    right = trees.right[start : start + count].tolist()
    order: list[int] = []
    spans: dict[int, tuple[int, int, int]] = {}
    first: dict[int, int] = {}
    split: dict[int, int] = {}
    pending = [(0 if count else ~0, "enter")]
    while pending:
        node, stage = pending.pop()
        if node < 0:
            order.append(~node)
        elif stage == "enter":
            if node in first:  # else it would go round for ever
                raise CheckpointMismatch(
                    "A tree of the checkpoint reaches a node twice; restore it, or train it again."
                )
            first[node] = len(order)
            pending += [(node, "leave"), (right[node], "enter"), (node, "between")]
            pending.append((left[node], "enter"))
        elif stage == "between":
            split[node] = len(order)
        else:
            spans[node] = (first[node], split[node], len(order))
    return order, [spans[node] for node in range(count)]


def leaf_values(rows: Floats, table: compiled.TreeTable) -> Floats:
    """Return what ``compiled.leaf_values`` returns, to the bit."""
    columns, every, firsts, of_nans, entries, values, starts = table
    left = np.repeat(entries[:1], len(rows), axis=0)  # [row, tree]
    kept = np.empty_like(left)
    for column, edges, first, of_nan in zip(columns, every, firsts, of_nans, strict=True):
        value = rows[:, column]
        place = np.where(np.isnan(value), of_nan, np.searchsorted(edges, value) + first)
        left &= entries.take(place, axis=0, out=kept, mode="clip")  # no copy beside it
    # The number of zeros below the lowest set bit is the number of leaves to its left.
    leaf = starts + np.bitwise_count((left - entries.dtype.type(1)) & ~left)
    return values.take(leaf)


class Scorer:
    """Computes the raw scores of ``Trees``; other rows of a call change no bit of a row's score.

    The compiled loops find the leaves if they are built, else NumPy does.
    """

    def __init__(self, trees: Trees) -> None:
        self._trees = len(trees.leaves)
        self._ensembles = trees.ensemble_starts
        ordered = [ordered_leaves(trees, tree) for tree in range(self._trees)]
        values = np.concatenate(
            [
                trees.value[start : start + len(order)][order]
                for start, (order, _) in zip(trees.leaf_starts.tolist(), ordered, strict=True)
            ]
        )
        spans = [span for _, every in ordered for span in every]
        self._table = self._tabulated(trees, np.array(spans, dtype=np.int64).reshape(-1, 3), values)

    def scores(self, rows: NDArray[np.floating]) -> Floats:
        """Return [row, ensemble] raw scores of [row, feature] *rows*."""
        wide = np.asarray(rows, dtype=np.float64)
        scores = np.empty((len(wide), len(self._ensembles)))
        name = next(iter(compiled.available()), None)
        for start in range(0, len(wide), _BLOCK_ROWS):
            part, table = wide[start : start + _BLOCK_ROWS], self._table
            values = compiled.leaf_values(part, table, name) if name else leaf_values(part, table)
            # The sum of an ensemble is NumPy's, whoever finds the leaves.
            scores[start : start + len(part)] = np.add.reduceat(
                values[:, : self._trees], self._ensembles, axis=1
            )
        return scores

    def _tabulated(self, trees: Trees, spans: Ints, values: Floats) -> compiled.TreeTable:
        """Return the tables: for each feature, the leaves that remain at each of its thresholds."""
        word = np.uint32 if int(trees.leaves.max()) <= 32 else np.uint64
        full = np.iinfo(word).max
        width = -(-self._trees // compiled.TREES_AT_ONCE) * compiled.TREES_AT_ONCE
        of_tree = np.repeat(np.arange(self._trees), trees.leaves - 1)
        kept = np.array(
            [full ^ (((1 << (split - first)) - 1) << first) for first, split, _ in spans.tolist()],
            dtype=word,
        )
        columns = int(trees.feature.max(initial=-1)) + 1  # the least that a row must have
        nan_right = ~trees.goes_left(np.full((1, columns), np.nan))[0]
        features = np.unique(trees.feature).astype(np.int64)
        tables, thresholds = [np.full((1, width), full, dtype=word)], []
        for feature in features.tolist():
            at = np.flatnonzero(trees.feature == feature)
            edges, place = np.unique(trees.threshold[at], return_inverse=True)
            table = np.full((len(edges) + 2, width), full, dtype=word)
            np.bitwise_and.at(table, (place + 1, of_tree[at]), kept[at])
            table[:-1] = np.bitwise_and.accumulate(table[:-1], axis=0)
            lost = at[nan_right[at]]
            np.bitwise_and.at(table[-1], of_tree[lost], kept[lost])
            tables.append(table)
            thresholds.append(edges)
        sizes = np.array([len(edges) + 2 for edges in thresholds], dtype=np.int64)
        first = 1 + np.cumsum(sizes) - sizes
        every = np.full((len(thresholds), max(map(len, thresholds), default=0)), np.inf)
        for row, edges in zip(every, thresholds, strict=True):
            row[: len(edges)] = edges
        starts = np.zeros(width, dtype=np.int64)
        starts[: self._trees] = trees.leaf_starts
        return compiled.TreeTable(
            features, every, first, first + sizes - 1, np.concatenate(tables), values, starts
        )


_BLOCK_NUMBERS: Final = 4_000_000  # row times leaf times feature of a path, computed at once


class ShapleyValues(NamedTuple):
    """The contributions of features; with ``base`` they sum to the scores, up to rounding."""

    by_feature: Floats  # [row, ensemble, feature]
    base: Floats  # [ensemble]: the mean score of the training rows


class _Paths(NamedTuple):
    """The path to every leaf; a slot is one feature of one path."""

    node: Ints  # [entry]: nodes, path after path, those of one feature side by side
    is_left: NDArray[np.bool_]  # [entry]: which way the path takes there
    slot_start: Ints  # [slot]: its first entry
    slot_leaf: Ints  # [slot]: the leaf of its path
    slot_place: Ints  # [slot]: its number in that path
    slot_feature: Ints
    share: Floats  # [slot]: of the training rows that took the path at all its nodes


def contributions(trees: Trees, rows: NDArray[np.floating]) -> ShapleyValues:
    """Return the contribution of each feature of [row, feature] *rows* to each ensemble's score."""
    wide = np.asarray(rows, dtype=np.float64)
    paths = _paths(trees)
    ensemble = np.repeat(np.arange(len(trees.trees)), trees.trees)
    of_leaf = np.repeat(ensemble, trees.leaves)
    shapley = np.zeros((len(wide), len(trees.trees), wide.shape[1]))
    if len(paths.slot_leaf):
        longest = int(paths.slot_place.max()) + 1
        cell = of_leaf[paths.slot_leaf] * wide.shape[1] + paths.slot_feature
        block = max(_BLOCK_NUMBERS // (len(trees.value) * longest), 1)
        for start in range(0, len(wide), block):
            part = slice(start, start + block)
            for at, added in enumerate(_added(trees, paths, wide[part], longest), start):
                sums = np.bincount(cell, added, minlength=shapley[0].size)
                shapley[at] = sums.reshape(shapley[0].shape)
    total = np.add.reduceat(trees.leaf_rows, trees.leaf_starts)
    reached = trees.leaf_rows / np.repeat(total, trees.leaves)
    base: Floats = np.zeros(len(trees.trees))
    np.add.at(base, of_leaf, reached * trees.value)
    return ShapleyValues(shapley, base)


def _added(trees: Trees, paths: _Paths, rows: Floats, longest: int) -> Floats:
    """Return [row, slot]: the contribution of the slot's feature through the slot's leaf."""
    follows_node = trees.goes_left(rows)[:, paths.node] == paths.is_left
    satisfied = np.logical_and.reduceat(follows_node, paths.slot_start, axis=1).astype(np.float64)
    shape = (len(rows), len(trees.value), longest)
    at = (slice(None), paths.slot_leaf, paths.slot_place)
    follows, share = np.ones(shape), np.ones(shape)  # the neutral value of missing slots
    follows[at], share[at] = satisfied, paths.share
    points, weights = np.polynomial.legendre.leggauss((longest + 1) // 2)
    integral = np.zeros(shape)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        term = follows * point + share * (1 - point)
        # Each product omits its own term without a division, because the term may be tiny.
        before = np.ones(shape)
        after = np.ones(shape)
        np.cumprod(term[..., :-1], axis=-1, out=before[..., 1:])
        after[..., :-1] = np.cumprod(term[..., :0:-1], axis=-1)[..., ::-1]
        integral += weight * before * after
    added: Floats = (trees.value[:, None] * (follows - share) * integral)[at]
    return added


def _paths(trees: Trees) -> _Paths:
    """Return the path of every leaf, its entries sorted by feature."""
    rows_at = _rows_at_children(trees)
    entries: list[tuple[int, int, int, bool, float]] = []  # leaf, feature, node, left, share
    for tree in range(len(trees.leaves)):
        start, first_leaf = int(trees.node_starts[tree]), int(trees.leaf_starts[tree])
        order, spans = ordered_leaves(trees, tree)
        for node, (first, split, end) in enumerate(spans, start):
            feature, count = int(trees.feature[node]), float(trees.node_rows[node])
            for place in range(first, end):
                is_left = place < split
                share = rows_at[node][0 if is_left else 1] / count
                entries.append((first_leaf + order[place], feature, node, is_left, share))
    table = np.array(sorted(entries), dtype=np.float64).reshape(-1, 5)
    of_leaf, features, nodes = (table[:, column].astype(np.int64) for column in range(3))
    is_new = np.ones(len(table), dtype=np.bool_)
    is_new[1:] = (np.diff(of_leaf) != 0) | (np.diff(features) != 0)
    starts = np.flatnonzero(is_new)
    leaves = of_leaf[starts]
    begins = np.searchsorted(leaves, leaves)  # the first slot of the same leaf
    return _Paths(
        node=nodes,
        is_left=table[:, 3] > 0,
        slot_start=starts,
        slot_leaf=leaves,
        slot_place=np.arange(len(starts)) - begins,
        slot_feature=features[starts],
        share=np.multiply.reduceat(table[:, 4], starts) if len(starts) else table[:, 4],
    )


def _rows_at_children(trees: Trees) -> list[tuple[float, float]]:
    """Return, for each node, the training rows that went left and right."""
    by_side = []
    of_tree = np.repeat(np.arange(len(trees.leaves)), trees.leaves - 1)
    nodes, leaves = trees.node_starts[of_tree], trees.leaf_starts[of_tree]
    for side in (trees.left, trees.right):
        inner = side >= 0
        rows = np.empty(len(side))
        rows[inner] = trees.node_rows[(nodes + side)[inner]]
        rows[~inner] = trees.leaf_rows[(leaves + ~side)[~inner]]
        by_side.append(rows.tolist())
    return list(zip(*by_side, strict=True))
