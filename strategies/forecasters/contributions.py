"""What each feature adds to the raw score of boosted trees: exact Shapley values of the paths.

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

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.forecasters.trees import Floats, Ints, Trees, ordered_leaves

_BLOCK_NUMBERS: Final = 4_000_000  # row times leaf times feature of a path, computed at once


class ShapleyValues(NamedTuple):
    """What features add to the scores; with ``base`` they sum to the scores, to rounding."""

    by_feature: Floats  # [row, ensemble, feature]
    base: Floats  # [ensemble]: the mean score of the training rows


class _Paths(NamedTuple):
    """The way to every leaf; a slot is one feature of one path."""

    node: Ints  # [entry]: nodes, path after path, those of one feature side by side
    is_left: NDArray[np.bool_]  # [entry]: which way the path takes there
    slot_start: Ints  # [slot]: its first entry
    slot_leaf: Ints  # [slot]: whose path it is part of
    slot_place: Ints  # [slot]: its number in that path
    slot_feature: Ints
    share: Floats  # [slot]: of the training rows that took the path at all its nodes


def contributions(trees: Trees, rows: NDArray[np.floating]) -> ShapleyValues:
    """Return what each feature of [row, feature] *rows* adds to the score of each ensemble."""
    wide = np.asarray(rows, dtype=np.float64)
    paths = _paths(trees)
    ensemble = np.repeat(np.arange(len(trees.trees)), trees.trees)
    of_leaf = np.repeat(ensemble, trees.leaves)
    found = np.zeros((len(wide), len(trees.trees), wide.shape[1]))
    if len(paths.slot_leaf):
        longest = int(paths.slot_place.max()) + 1
        cell = of_leaf[paths.slot_leaf] * wide.shape[1] + paths.slot_feature
        block = max(_BLOCK_NUMBERS // (len(trees.value) * longest), 1)
        for start in range(0, len(wide), block):
            part = slice(start, start + block)
            for at, added in enumerate(_added(trees, paths, wide[part], longest), start):
                sums = np.bincount(cell, added, minlength=found[0].size)
                found[at] = sums.reshape(found[0].shape)
    total = np.add.reduceat(trees.leaf_rows, trees.leaf_starts)
    reached = trees.leaf_rows / np.repeat(total, trees.leaves)
    base: Floats = np.zeros(len(trees.trees))
    np.add.at(base, of_leaf, reached * trees.value)
    return ShapleyValues(found, base)


def _added(trees: Trees, paths: _Paths, rows: Floats, longest: int) -> Floats:
    """Return [row, slot]: what the slot's feature adds by the slot's leaf."""
    taken = trees.goes_left(rows)[:, paths.node] == paths.is_left
    satisfied = np.logical_and.reduceat(taken, paths.slot_start, axis=1).astype(np.float64)
    shape = (len(rows), len(trees.value), longest)
    at = (slice(None), paths.slot_leaf, paths.slot_place)
    follows, share = np.ones(shape), np.ones(shape)  # a slot that is not there changes nothing
    follows[at], share[at] = satisfied, paths.share
    points, weights = np.polynomial.legendre.leggauss((longest + 1) // 2)
    integral = np.zeros(shape)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        term = follows * point + share * (1 - point)
        # Every product leaves its own term out, which may be too small to divide by.
        before = np.ones(shape)
        after = np.ones(shape)
        np.cumprod(term[..., :-1], axis=-1, out=before[..., 1:])
        after[..., :-1] = np.cumprod(term[..., :0:-1], axis=-1)[..., ::-1]
        integral += weight * before * after
    whole: Floats = (trees.value[:, None] * (follows - share) * integral)[at]
    return whole


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
    found = []
    of_tree = np.repeat(np.arange(len(trees.leaves)), trees.leaves - 1)
    nodes, leaves = trees.node_starts[of_tree], trees.leaf_starts[of_tree]
    for side in (trees.left, trees.right):
        inner = side >= 0
        rows = np.empty(len(side))
        rows[inner] = trees.node_rows[(nodes + side)[inner]]
        rows[~inner] = trees.leaf_rows[(leaves + ~side)[~inner]]
        found.append(rows.tolist())
    return list(zip(*found, strict=True))
