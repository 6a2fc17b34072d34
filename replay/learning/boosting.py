"""Boosted trees fitted by LightGBM, an ensemble for each horizon, as plain arrays.

The variance is fitted by gamma loss with a log link, which equals QLIKE up to constants. LightGBM
is imported only here, and only when trees are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.forecasters.trees import LEAVES_MOST, Trees, joined

Floats = NDArray[np.float64]

_DECISION_DEFAULT_LEFT: Final = 2  # bits of LightGBM's ``decision_type``
_MISSING_NAN: Final = 2  # a value of its third and fourth bit


@dataclass(frozen=True)
class BoostingOptions:
    """Options of boosting; results depend on the seed, but not on the number of threads."""

    rounds: Annotated[int, Meta(description="Trees of a horizon.")] = 100
    patience: Annotated[
        int,
        Meta(ge=0, description="Rounds without a better validation score, then stop; 0: never."),
    ] = 0
    learning_rate: Annotated[float, Meta(description="Learning rate.")] = 0.1
    leaves: Annotated[
        int, Meta(ge=2, le=LEAVES_MOST, description="Leaves of a tree of the variance.")
    ] = 31
    mean_leaves: Annotated[
        int, Meta(ge=2, le=LEAVES_MOST, description="Leaves of a tree of the mean.")
    ] = 7
    mean_learning_rate: Annotated[float, Meta(description="Learning rate of the mean.")] = 0.03
    rows_least: Annotated[
        int, Meta(description="Rows of a leaf at least; fewer where there are few rows.")
    ] = 200
    bins: Annotated[int, Meta(description="Bins of a feature.")] = 63
    column_share: Annotated[float, Meta(description="Share of the features that a tree sees.")] = (
        0.8
    )
    l2: Annotated[float, Meta(description="L2 penalty of a leaf's value.")] = 1.0
    seed: Annotated[int, Meta(description="Random seed.")] = 0


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows: [row, column] inputs, and [row, horizon] values and weights.

    A weight of zero marks a row without a label at that horizon.
    """

    rows: NDArray[np.floating[Any]]
    values: NDArray[np.floating[Any]]
    weights: NDArray[np.floating[Any]]


def import_lightgbm(needed_by: str = "A fit of trees") -> ModuleType:
    """Return LightGBM; raise ``ConfigInvalid`` if it or one of its libraries is missing."""
    try:
        import lightgbm
    except ImportError:
        raise ConfigInvalid(missing_sentence("lightgbm", needed_by)) from None
    except OSError as error:
        raise ConfigInvalid(
            f"LightGBM needs a library of the system that is missing ({error}); install OpenMP's, "
            "called libgomp1 by Debian, or fit on another machine: running trees needs neither."
        ) from None
    return lightgbm


def boost(
    training: LabelledRows,
    validation: LabelledRows | None,
    options: BoostingOptions,
    *,
    target: str,
    threads: int,
) -> Trees:
    """Return an ensemble for each horizon, of ``"variance"`` (log) or ``"mean"``.

    *validation* stops it early; without it, or without patience, all rounds are done. Each horizon
    has a label in both.
    """
    return joined(
        [
            _ensemble(training, validation, horizon, options, target=target, threads=threads)
            for horizon in range(training.values.shape[1])
        ]
    )


def _ensemble(
    training: LabelledRows,
    validation: LabelledRows | None,
    horizon: int,
    options: BoostingOptions,
    *,
    target: str,
    threads: int,
) -> Trees:
    lightgbm = import_lightgbm()
    sets: list[Any] = []
    parameters = _parameters(options, target=target, count=len(training.rows), threads=threads)
    for table in (training, validation if options.patience else None):
        if table is None:
            continue
        labelled = table.weights[:, horizon] > 0
        sets.append(
            lightgbm.Dataset(
                table.rows[labelled],
                table.values[labelled, horizon],
                weight=table.weights[labelled, horizon],
                params=parameters,
                reference=sets[0] if sets else None,
            )
        )
    booster = lightgbm.train(
        parameters,
        sets[0],
        options.rounds,
        valid_sets=sets[1:],
        callbacks=[lightgbm.early_stopping(options.patience, verbose=False)] if sets[1:] else [],
    )
    # Without a validation set there is no best iteration, and all are kept.
    return trees_of(booster.model_to_string(num_iteration=booster.best_iteration or None))


def _parameters(
    options: BoostingOptions, *, target: str, count: int, threads: int
) -> dict[str, Any]:
    is_variance = target == "variance"
    return {
        "objective": "gamma" if is_variance else "regression",
        "boost_from_average": is_variance,
        "num_leaves": options.leaves if is_variance else options.mean_leaves,
        "learning_rate": options.learning_rate if is_variance else options.mean_learning_rate,
        "min_data_in_leaf": max(min(options.rows_least, count // 50), 1),
        "max_bin": options.bins,
        "feature_fraction": options.column_share,
        "lambda_l2": options.l2,
        "seed": options.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": threads,
        "verbosity": -1,
    }


def trees_of(text: str) -> Trees:
    """Return the ensemble of a LightGBM model's text.

    ``boost`` never asks for categorical columns, linear leaves or zeros as missing values.
    """
    blocks = [_lines(block) for block in text.split("\nTree=")[1:]]
    parts = [_tree(block) for block in blocks]
    leaves = [len(part["value"]) for part in parts]
    return Trees(
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        leaves=np.array(leaves, dtype=np.int32),
        trees=np.array([len(parts)], dtype=np.int32),
    )


def _lines(block: str) -> dict[str, str]:
    """Return the ``name=value`` lines of one tree."""
    lines = (line.partition("=") for line in block.split("\n\n", 1)[0].splitlines())
    return {name: value for name, _, value in lines}


def _tree(block: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Return one tree's part of the arrays of ``Trees``, by their names."""

    def column(name: str) -> Floats:
        return np.array(block.get(name, "").split(), dtype=np.float64)

    value = column("leaf_value")
    decision = column("decision_type").astype(np.int64)
    missing = decision >> 2
    rows = column("leaf_count")
    return {
        "feature": column("split_feature").astype(np.int32),
        # An infinite threshold sends every known value left; stored numbers must be finite.
        "threshold": np.minimum(column("threshold"), np.finfo(np.float64).max),
        "left": column("left_child").astype(np.int32),
        "right": column("right_child").astype(np.int32),
        "default_left": (decision & _DECISION_DEFAULT_LEFT > 0).astype(np.uint8),
        "nan_is_missing": (missing == _MISSING_NAN).astype(np.uint8),
        "node_rows": column("internal_count").astype(np.int64),
        "value": value,
        # A tree without a split has no row counts.
        "leaf_rows": (rows if rows.sum() > 0 else np.ones(len(value))).astype(np.int64),
    }
