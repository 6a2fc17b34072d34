"""Fits of a committee's simple members on a rolling window, the first ones and later ones.

A fit at a time τ learns from the rows whose targets had closed by τ, of the window before it, and
answers from τ on. Times are multiples of ``every``, so that a later fit stands where one made
today would stand.

The rules are docs/models.md, L66 to L68.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

from tracepaper.replay.archive import slice_candles
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.boosting import (
    BoostingOptions,
    LabelledRows,
    boost,
    import_lightgbm,
)
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimators.tabular import glm_arrays
from tracepaper.replay.learning.samples import targets
from tracepaper.replay.learning.splits import Segment, iso
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.storage import checkpoints
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.forecasters.committee import COMMITTEE, FITS_MOST, SIMPLE
from tracepaper.strategies.forecasters.trees import joined
from tracepaper.strategies.units import DAY_MS, time_of

FLOOR_SHARE: Final = 0.01
"""Of the variances that followed: its quantile is the least that a loss counts with."""
OF_HAR: Final = ("realised_", "har_")
"""What the names of the features begin with that ``har`` is given: volatilities of the past."""


@dataclass(frozen=True)
class CommitteeOptions:
    """``[committee]``: whose base, how simple members are fitted, and how all are mixed."""

    of: Annotated[
        str, Meta(description="The base: a bundled checkpoint's name, or a checkpoint's folder.")
    ] = "default"
    members: Annotated[
        tuple[str, ...], Meta(description="Members that are fitted anew: of har, glm, tree.")
    ] = ("har", "glm", "tree")
    every: Annotated[str, Meta(description="Time from one fit to the next.")] = "7d"
    window: Annotated[str, Meta(description="Time before a fit that it learns from.")] = "60d"
    memory: Annotated[str, Meta(description="Time that the weights look back on.")] = "28d"
    half_life: Annotated[str, Meta(description="Time after which a loss counts half.")] = "14d"
    share: Annotated[
        float, Meta(ge=0, lt=1, description="Of the weight, divided among all members alike.")
    ] = 0.05

    def __post_init__(self) -> None:
        """Refuse members that are none, and times that are none."""
        known = [one for one in self.members if one in SIMPLE]
        if not known or len(set(self.members)) < len(self.members) or known != [*self.members]:
            raise ConfigInvalid(
                f"committee.members must be some of {', '.join(SIMPLE)}, each once."
            )
        if not 0 <= self.share < 1:
            raise ConfigInvalid(f"committee.share is {self.share}; give 0 to less than 1.")
        for name in ("every", "window", "memory", "half_life"):
            if (time_of(getattr(self, name)) or 0) < DAY_MS:
                raise ConfigInvalid(
                    f"committee.{name} is {getattr(self, name)!r}; give a time of a day at least, "
                    "such as 7d."
                )

    def ms(self, name: str) -> int:
        """Return the time of the key *name* in milliseconds."""
        return time_of(getattr(self, name)) or 0


class FittedRows(NamedTuple):
    """Rows of features of a window of time, with their labels: [row, ..]."""

    variance: LabelledRows
    returned: LabelledRows
    sha256: str  # of all of it


def listed(options: CommitteeOptions) -> dict[str, Any]:
    """Return *options* as a file and a card hold them."""
    return {**asdict(options), "members": list(options.members)}


def members_here(options: CommitteeOptions) -> tuple[tuple[str, ...], str]:
    """Return the members that can be fitted here, and a sentence about those that cannot."""
    found, missing = [], []
    for name in options.members:
        try:
            FITTED[name].needs()
            found.append(name)
        except ConfigInvalid as error:
            missing.append(f"It has no {name}: {error}")
    return tuple(found), " ".join(missing)


def fit_times(data: Dataset, options: CommitteeOptions) -> list[int]:
    """Return the times of all fits, multiples of ``every`` with a whole window of rows before.

    Raises ``ConfigInvalid`` where there is none, or more than a checkpoint holds.
    """
    every, window = options.ms("every"), options.ms("window")
    first = min(int(one.close_time_ms[one.first]) for one in data.segments)
    last = max(int(one.close_time_ms[-1]) for one in data.segments)
    times = list(range(-(-(first + window) // every) * every, last + 1, every))
    if not times:
        raise ConfigInvalid(
            f"The candles have features from {iso(first)} until {iso(last)}, less than "
            f"committee.window, {options.window}, before a first fit; give longer candles, or a "
            "shorter window."
        )
    if len(times) > FITS_MOST:
        raise ConfigInvalid(
            f"That would be {len(times):,} fits, and a checkpoint holds {FITS_MOST:,}; give a "
            "longer committee.every, or fewer candles."
        )
    return times


def fit_at(
    data: Dataset, options: CommitteeOptions, until_ms: int, *, threads: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fit the simple members to the window before *until_ms*: tensors, and what a card says.

    Raises ``DataInvalid`` where a horizon has no label there.
    """
    known = rows_before(data, until_ms - options.ms("window"), until_ms)
    tensors: dict[str, Tensor] = {}
    for member in members_here(options)[0]:
        arrays = FITTED[member].fit(known, data.schema.names, threads)
        tensors |= {f"{member}.{name}": torch.from_numpy(of) for name, of in arrays.items()}
    return tensors, {
        "from_ms": until_ms,
        "rows": len(known.variance.rows),
        "data_sha256": known.sha256,
    }


class SimpleMember(NamedTuple):
    """How a member is fitted: rows, the names of their columns and threads → its arrays."""

    fit: Callable[[FittedRows, Sequence[str], int], dict[str, NDArray[Any]]]
    needs: Callable[[], object] = lambda: None
    """Raises ``ConfigInvalid`` where an optional package is missing."""


def _har(known: FittedRows, names: Sequence[str], threads: int) -> dict[str, NDArray[Any]]:
    del threads
    chosen = [at for at, name in enumerate(names) if name.startswith(OF_HAR)]
    narrow = [
        replace(table, rows=table.rows[:, chosen]) for table in (known.variance, known.returned)
    ]
    found: dict[str, NDArray[Any]] = {}
    for name, array in glm_arrays(*narrow).items():
        found[name] = array
        if name == "centre" or name.endswith("weights"):
            found[name] = np.zeros((*array.shape[:-1], len(names)))
            found[name][..., chosen] = array
    return found


def _glm(known: FittedRows, names: Sequence[str], threads: int) -> dict[str, NDArray[Any]]:
    del names, threads
    return glm_arrays(known.variance, known.returned)


def _tree(known: FittedRows, names: Sequence[str], threads: int) -> dict[str, NDArray[Any]]:
    del names
    given = ((known.variance, "variance"), (known.returned, "mean"))
    return joined(
        [boost(table, None, BoostingOptions(), of=of, threads=threads) for table, of in given]
    ).arrays()


FITTED: Final[Mapping[str, SimpleMember]] = {
    "har": SimpleMember(_har),
    "glm": SimpleMember(_glm),
    "tree": SimpleMember(_tree, needs=lambda: import_lightgbm()),  # noqa: PLW0108 - as it stands
}
"""How each of ``strategies.forecasters.committee.SIMPLE`` is fitted."""


def rows_before(data: Dataset, from_ms: int, until_ms: int) -> FittedRows:
    """Collect the rows decided from *from_ms* on whose targets had closed by *until_ms*.

    Raises ``DataInvalid`` where a horizon has none.
    """
    digest = hashlib.sha256(f"{data.schema.schema_id} {data.horizons}".encode())
    parts, columns = [], range(len(data.horizons))
    for segment in data.segments:
        closes = segment.close_time_ms
        start = max(int(np.searchsorted(closes, from_ms)), segment.first)
        stop = int(np.searchsorted(closes, until_ms, side="right"))
        if start >= stop:
            continue
        known = _cut(segment, start, stop)
        labels = targets(known, data.horizons)
        values, variance, returned = known.values, labels["variance"], labels["returns"]
        usable = np.isfinite(values).all(axis=1, keepdims=True)
        labelled = usable & np.isfinite(variance) & np.isfinite(returned)
        used = labelled.any(axis=1)
        digest.update(np.ascontiguousarray(segment.open_time_ms[start:stop][used]).data)
        for array in (values, variance, returned):
            digest.update(np.ascontiguousarray(array[used]).data)
        parts.append([array[used] for array in (values, variance, returned, labelled)])
    if not parts or not all(any(part[3][:, at].any() for part in parts) for at in columns):
        raise DataInvalid(
            f"No bar of the time before {iso(until_ms)} has the next {max(data.horizons)} known; "
            "give candles without such holes, or a longer committee.window."
        )
    rows, of_variance, of_return, weights = (
        np.concatenate([np.nan_to_num(part[at].astype(np.float32), nan=1.0) for part in parts])
        for at in range(4)
    )
    variances, returns = (LabelledRows(rows, of, weights) for of in (of_variance, of_return))
    return FittedRows(variances, returns, digest.hexdigest())


def _cut(segment: Segment, start: int, stop: int) -> Segment:
    """Return rows *start* until *stop*, so that a label beyond them is not known."""
    rows = slice(start, stop)
    return Segment(
        slice_candles(segment.candles, rows),
        segment.close[rows],
        segment.values[rows],
        segment.sigma[rows],
        0,
    )


def floors(data: Dataset, options: CommitteeOptions, until_ms: int) -> dict[str, float]:
    """Return by horizon the least variance that a loss counts with, of the first window."""
    known = rows_before(data, until_ms - options.ms("window"), until_ms).variance
    columns = zip(data.horizons, known.values.T, known.weights.T, strict=True)
    return {
        str(horizon): max(
            cards.rounded(float(np.quantile(values[weights > 0], FLOOR_SHARE))), VARIANCE_FLOOR
        )
        for horizon, values, weights in columns
    }


class Refit(NamedTuple):
    """A committee with the fits that have come since it was made, and the newest of them."""

    card: dict[str, Any]
    tensors: dict[str, Tensor]
    from_ms: int  # the window of the newest fit
    until_ms: int
    rows: int
    data_sha256: str

    @property
    def reason(self) -> str:
        """What was done, in words."""
        return (
            f"a fit of {', '.join(self.card[COMMITTEE]['members'][1:])} to {self.rows:,} rows "
            f"from {iso(self.from_ms)} until {iso(self.until_ms)}, data {self.data_sha256[:12]}"
        )


def refitted(
    running: checkpoints.Checkpoint, data: Dataset, now_ms: int | None, *, threads: int
) -> Refit | str:
    """Fit the members anew at each time that has come by *now_ms*, or the end of *data*.

    A fit needs a whole window before it. Returns why there is none, in words.
    """
    section = running.card[COMMITTEE]
    given = section["recipe"]
    options = CommitteeOptions(**{**given, "members": tuple(section["members"][1:])})
    if missing := members_here(options)[1]:
        return missing.rstrip(".")
    every, window = options.ms("every"), options.ms("window")
    newest = int(section["fits"][-1]["from_ms"])
    first = min(int(one.close_time_ms[one.first]) for one in data.segments)
    last = max(int(one.close_time_ms[-1]) for one in data.segments)
    due = [
        at
        for at in range(newest + every, (last if now_ms is None else now_ms) + 1, every)
        if first + window <= at <= last
    ]
    if not due:
        return (
            f"the newest fit is of {iso(newest)}, and the bars from {iso(first)} until "
            f"{iso(last)} hold no later time, a multiple of {options.every} after it, with "
            f"{options.window} before; wait, or name an archive in retrain.data"
        )
    tensors, fits = dict(running.tensors), list(section["fits"])
    for until_ms in due:
        made, said = fit_at(data, options, until_ms, threads=threads)
        tensors |= {f"{len(fits)}.{name}": tensor for name, tensor in made.items()}
        fits.append(said)
    if len(fits) > FITS_MOST:
        return f"its checkpoint holds {FITS_MOST:,} fits already; train it again"
    kept = {name: of for name, of in running.card.items() if name != "baselines"}
    card = {**kept, COMMITTEE: {**section, "fits": fits}}
    return Refit(
        card, tensors, due[-1] - window, due[-1], int(fits[-1]["rows"]), fits[-1]["data_sha256"]
    )


def recipe_hash(card: Mapping[str, Any]) -> str:
    """Return the hash of what was chosen for the committee of *card*: twelve digits."""
    text = json.dumps([card[COMMITTEE]["recipe"], card[COMMITTEE]["base_id"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
