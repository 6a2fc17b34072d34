"""Datasets of several intervals: horizons, samples, recipes and errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Cli
from learning import DAY_BARS, MINUTE_MS, choose, learnable, split, write_csv

from tracepaper.replay.learning.dataset import Dataset, in_bars, intervals_of
from tracepaper.replay.learning.recipe import read_recipe, recipe_of, with_bars
from tracepaper.replay.learning.samples import targets
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.features.rows import schema

FIVE, FIFTEEN, HALF, HOUR = (count * MINUTE_MS for count in (5, 15, 30, 60))
DAYS = 20
SPLIT = split(8, 9, 10, embargo=2)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return minutes of two symbols over twenty days."""
    root = tmp_path_factory.mktemp("candles")
    both = (learnable(DAYS * DAY_BARS), learnable(DAYS * DAY_BARS, seed=1, symbol="BBBUSDT"))
    return [str(write_csv(candles, root)) for candles in both]


@pytest.fixture(scope="module")
def joint(paths: list[str]) -> Dataset:
    """Return them as bars of 15 minutes, with bars of 5 and 30 minutes for training."""
    return Dataset.read(paths, lambda _: SPLIT, (4, 16), "v2", intervals=(FIFTEEN, FIVE, HALF))


def test_one_horizon_is_other_bars_at_other_intervals(joint: Dataset) -> None:
    assert joint.interval_ms == FIFTEEN
    assert joint.intervals == (FIFTEEN, FIVE, HALF)
    assert joint.schema.schema_id == "v2-15m"
    assert joint.horizons == (4, 16)
    assert joint.horizons_at(FIVE) == (12, 48)
    assert joint.horizons_at(HALF) == (2, 8)
    for samples in joint.samples(Part.TRAIN):
        segment = samples.segment
        row = int(np.flatnonzero(samples.weights[:, 1])[0])
        bars = 4 * HOUR // segment.interval_ms
        moved = np.log(segment.close[row + bars] / segment.close[row])
        expected = moved / (segment.sigma[row] * bars**0.5)
        assert samples.labels["returns"][0, row, 1] == pytest.approx(expected, rel=1e-4)


def test_other_intervals_are_seen_in_training_alone(joint: Dataset) -> None:
    def lengths(part: Part) -> set[int]:
        return {samples.segment.interval_ms for samples in joint.samples(part)}

    assert lengths(Part.TRAIN) == {FIFTEEN, FIVE, HALF}
    assert lengths(Part.VALIDATION) == lengths(Part.CALIBRATION) == lengths(Part.TEST) == {FIFTEEN}


def test_a_symbol_is_of_a_part_only_where_it_has_bars_to_judge(
    paths: list[str], tmp_path: Path
) -> None:
    early = write_csv(learnable(4 * DAY_BARS, seed=2, symbol="EARLYUSDT"), tmp_path)
    dataset = Dataset.read([*paths, str(early)], lambda _: SPLIT, (4,), "v2", intervals=(FIFTEEN,))
    both = dataset.symbols(Part.TEST)
    assert len(both) == 2
    assert dataset.symbols(Part.TRAIN) == tuple(sorted([*both, "EARLYUSDT"]))


def test_no_label_of_any_interval_reaches_out_of_training(joint: Dataset) -> None:
    for samples in joint.samples(Part.TRAIN):
        for column, bars in enumerate(samples.horizons):
            last = int(np.flatnonzero(samples.weights[:, column])[-1]) + bars
            assert samples.segment.close_time_ms[last] <= SPLIT.train_until_ms


def test_a_schema_names_the_interval(paths: list[str]) -> None:
    material = Dataset.read(paths[:1], lambda _: SPLIT, (4,), "v2-15m")
    assert (material.interval_ms, material.horizons) == (FIFTEEN, (4,))
    assert Dataset.read(paths[:1], lambda _: SPLIT, (5, 30)).schema.schema_id == "v2-1m"


@pytest.mark.parametrize(
    ("schema_id", "intervals", "horizons", "sentence"),
    [
        ("v2-5m", (FIFTEEN,), (4,), "features v2-5m are not of bars of 15m; choose v2"),
        ("v2", (FIFTEEN, HOUR), (2, 16), "30m is no whole number of bars of 1h"),
        ("v2", (7 * MINUTE_MS,), (1,), "No feature schema is called 'v2-7m'"),
        ("v9", (FIFTEEN,), (4,), "No feature schema is called 'v9'"),
    ],
)
def test_what_cannot_be_learnt_is_one_sentence(
    paths: list[str],
    schema_id: str,
    intervals: tuple[int, ...],
    horizons: tuple[int, ...],
    sentence: str,
) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        Dataset.read(paths[:1], lambda _: SPLIT, horizons, schema_id, intervals=intervals)


def test_too_few_bars_are_one_sentence(tmp_path: Path) -> None:
    path = str(write_csv(learnable(400), tmp_path))
    with pytest.raises(DataInvalid, match="480 bars without a gap"):
        Dataset.read([path], lambda _: SPLIT, (30,), "v2")


def test_horizons_and_intervals_are_read_from_text() -> None:
    assert in_bars("5m,30m,4h", MINUTE_MS) == (5, 30, 240)
    assert in_bars("240, 5,30", MINUTE_MS) == (5, 30, 240)
    for text, sentence in (
        ("20m", "no whole number of bars of 15m"),
        ("soon", "neither a time nor bars"),
        ("1h,", "neither a time nor bars"),
    ):
        with pytest.raises(ConfigInvalid, match=sentence):
            in_bars(text, FIFTEEN)
    assert intervals_of(["15m", "5", "1h", "15", "D"]) == (FIFTEEN, FIVE, HOUR, 24 * HOUR)
    with pytest.raises(ConfigInvalid, match="'often' is no interval"):
        intervals_of(["15m", "often"])


def test_labels_follow_the_schema_by_their_unit(joint: Dataset) -> None:
    segment = joint.segments[0]
    assert segment.values.shape[1] == len(schema("v2-15m").names)
    returns = targets(joint.panels[0], (4,))["returns"][0, :, 0]
    assert np.isnan(returns[: segment.first]).all()


def test_a_training_without_a_folder_describes_its_data(paths: list[str], cli: Cli) -> None:
    chosen = choose(
        "features.intervals=15m,5m",
        "horizons=1h,2d",
        "split.train_until=2023-11-23",
        "split.validation_until=2023-11-27",
        "split.calibration_until=2023-12-01",
    )
    command = ["train", *(f"--data={path}" for path in paths), *chosen]
    document = cli.json(*command)
    assert [file["symbol"] for file in document["files"]] == ["AAAUSDT", "BBBUSDT"]
    hour, two_days, *others = (row for row in document["labels"] if row["part"] == "train")
    assert hour["sharing no bar"] == pytest.approx(hour["labels"] / 4, rel=0.02)
    assert two_days["independent days"] == two_days["days"] // 2
    assert [row["interval"] for row in others] == ["5m", "5m"]
    assert others[0]["labels"] > 2 * hour["labels"]
    output = cli.out(*command)
    assert "Features v2-15m" in output
    assert "2d" in output


@pytest.mark.parametrize("network", ["trading", "tree", "portfolio"])
def test_a_part_without_a_label_of_a_horizon_is_one_sentence(
    network: str, paths: list[str], tmp_path: Path, cli: Cli
) -> None:
    """Two days of validation have no label of two days; without the check all scores are NaN."""
    chosen = choose(
        f"model.kind={network}",
        "features.intervals=15m",
        "horizons=1h,2d",
        "split.train_until=2023-11-23",
        "split.validation_until=2023-11-26",
        "split.calibration_until=2023-12-01",
    )
    out = ("--out", str(tmp_path / "made"))
    complaint = cli.err("train", *(f"--data={path}" for path in paths), *chosen, *out, code=1)
    assert "The validation part has no bar whose next 192 (2d) end in it; give more" in complaint
    assert not (tmp_path / "made").exists()
    labels = cli.json("train", *(f"--data={path}" for path in paths), *chosen)["labels"]
    assert [row["labels"] > 0 for row in labels if row["part"] == "validation"] == [True, False]


@pytest.mark.parametrize(
    ("features", "given", "bars"),
    [
        ({"schema_id": "v2", "intervals": ["15m", "5m"]}, "1h,4h", (4, 16)),
        ({"schema_id": "v2-1h"}, "1d,4h", (4, 24)),
        ({}, "5,30", (5, 30)),
        ({"intervals": ["5m"], "asset": "stock"}, "1h", (12,)),
        ({"intervals": ["1d"], "asset": "stock"}, "1d,5d", (1, 5)),
    ],
)
def test_a_recipe_may_say_horizons_as_times(
    features: dict[str, object], given: str, bars: tuple[int, ...]
) -> None:
    document = with_bars({"features": features, "architecture": {"horizons": given}})
    assert document["architecture"]["horizons"] == bars
    of_gates = with_bars(
        {"features": features, "calibration": {"horizon": given.split(",", maxsplit=1)[0]}}
    )
    assert of_gates["calibration"]["horizon"] in bars


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        ({}, "set features.intervals"),
        ({"intervals": ["5m"], "asset": "stock"}, "no fixed number of bars"),
    ],
)
def test_a_recipe_of_times_needs_their_bars(features: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        with_bars({"features": features, "architecture": {"horizons": "1h,1d"}})


def test_a_network_is_trained_on_two_intervals_by_one_command(
    paths: list[str], tmp_path: Path, cli: Cli
) -> None:
    """Its card can be read as a recipe that includes the intervals."""
    out = tmp_path / "made"
    command = ["train", "--data", paths[0], "--out", str(out)]
    command += [
        *choose(
            "features.schema_id=v2",
            "features.intervals=15m,5m",
            "horizons=30m,1h",
            "training.steps=1",
        )
    ]
    command += [*choose("calibration.horizon=1h", "window=8", "layers=1", "dim=8")]
    command += [*choose("heads=2", "training.length=64", "training.explained_bars=500")]
    command += [*choose("split.train_until=2023-11-23", "split.validation_until=2023-11-26")]
    card = cli.json(*command, *choose("split.calibration_until=2023-11-29"))["card"]
    assert card["features"]["schema_id"] == "v2-15m"
    assert card["market"]["horizons"] == ["30m", "1h"]
    assert (card["architecture"]["horizons"], card["calibration"]["horizon"]) == ([2, 4], 4)
    assert intervals_of(card["features"]["intervals"]) == (FIFTEEN, FIVE)
    recipe = recipe_of(read_recipe(out / "card.toml"))
    assert (recipe.schema_id, recipe.intervals) == ("v2-15m", ("15m", "5m"))
