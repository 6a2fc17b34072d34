"""The trading network with a user's covariates: trained, judged, replayed, verified and explained.

The vectors say the next half hour's volatility beforehand, which a network can see; what is tested
is where they go, and what is said where they cannot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock_files
from learning import MINUTE_MS, START_MS, Say, choose, learnable, write_csv

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.run_row import continues
from tracepaper.replay.archive import slice_candles
from tracepaper.replay.archive.candles import bars_of
from tracepaper.replay.learning.dataset import Dataset, joined_to, read_files
from tracepaper.replay.learning.side_inputs import CovariateInputs
from tracepaper.replay.learning.splits import Split, iso, segments_of
from tracepaper.storage.checkpoints import load
from tracepaper.storage.covariates import kept_covariates, read_covariates
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.covariates import (
    CovariateColumns,
    CovariateScale,
    FixedCovariates,
    rows_of,
)
from tracepaper.strategies.features.rows import (
    FeatureStreams,
    columns,
    compute,
    schema,
    with_covariates,
)

COUNT = 2_600
FIRST = 700  # the first bar that any vector is known at
ENDS = (1_500, 1_800, 2_200)
AT = START_MS + MINUTE_MS * np.arange(FIRST, COUNT, 7) + 30_000
NUMBERS = np.random.default_rng(5).normal(size=(len(AT), 2)) * (1.0, 900.0)
RECIPE = """
[model]
kind = "trading"
[architecture]
dim = 8
layers = 2
heads = 2
window = 17
horizons = [5, 30]
[training]
steps = 2
length = 128
batch = 2
explained_bars = 500
threads = 1
[calibration]
horizon = 30
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with candles, vectors and a checkpoint that was trained on both."""
    made = tmp_path_factory.mktemp("vectors")
    candles = learnable(COUNT)
    write_csv(candles, made)
    (made / "few").mkdir()
    write_csv(slice_candles(candles, slice(0, 900)), made / "few")
    written(made / "news.csv")
    (made / "recipe.toml").write_text(RECIPE + split_section(), encoding="utf-8")
    assert invoke(trained(made, "out")) == 0
    return made


def split_section() -> str:
    names = ("train_until", "validation_until", "calibration_until")
    ends = (iso(START_MS + MINUTE_MS * end) for end in ENDS)
    lines = [f'{name} = "{end}"' for name, end in zip(names, ends, strict=True)]
    return "[split]\nembargo_bars = 30\n" + "\n".join(lines)


def trained(made: Path, out: str, *words: str) -> list[str]:
    recipe, candles = made / "recipe.toml", made / "bybit_linear_AAAUSDT_1m.csv.gz"
    told = [recipe, "--data", candles, "--covariates", made / "news.csv"]
    return [str(word) for word in ("train", *told, "--out", made / out, *words)]


def written(path: Path, names: Sequence[str] = ("mood", "heat")) -> None:
    """Write the vectors with columns in any order."""
    columns: dict[str, Any] = {"mood": NUMBERS[:, 0], "heat": NUMBERS[:, 1]}
    rows = [",".join(("time", *names))]
    for place, at in enumerate(AT.tolist()):
        rows.append(",".join([str(at), *(repr(float(columns[name][place])) for name in names)]))
    path.write_text("\n".join(rows), encoding="utf-8")


def test_the_card_names_columns_scale_and_file(folder: Path) -> None:
    card = load(folder / "out").card
    file = read_covariates(folder / "news.csv")
    of, until = card["features"]["vectors"], START_MS + MINUTE_MS * ENDS[0]
    before = NUMBERS[until > AT]
    assert of["columns"] == ["mood", "heat"]
    assert of["sha256"] == file.sha256
    assert of["centre"] == pytest.approx(before.mean(axis=0).tolist())
    assert of["scale"] == pytest.approx(before.std(axis=0).tolist())
    assert card["features"]["names"][-3:] == ["vector_mood", "vector_heat", "vector_age"]
    assert "vectors" in card["architecture"]["modalities"]
    assert "--covariates news.csv" in card["training"]["command"]


def test_what_is_learnt_begins_with_the_first_bar_that_has_a_vector(folder: Path) -> None:
    first, second, third = (START_MS + MINUTE_MS * end for end in ENDS)
    split = Split(first, second, third, embargo_bars=30)
    supplied = CovariateInputs(read_covariates(folder / "news.csv"))
    data = [str(folder / "bybit_linear_AAAUSDT_1m.csv.gz")]
    own = Dataset.read(data, lambda _: split, (5, 30), vectors=supplied).segments[0]
    assert own.first == FIRST  # whose close is the first at or after the first row's time
    known = np.searchsorted(AT, own.close_time_ms[FIRST:], side="right") - 1
    assert (
        np.diff(own.values[FIRST:, 78]).astype(bool).tolist()
        == np.diff(known).astype(bool).tolist()
    )
    assert np.isnan(own.values[FIRST - 1]).all()


def test_vectors_of_another_time_are_refused(folder: Path, tmp_path: Path, say: Say) -> None:
    late = tmp_path / "news.csv"
    late.write_text(f"time,mood\n{START_MS + MINUTE_MS * (COUNT + 9)},1\n", encoding="utf-8")
    words = trained(folder, "never")
    words[words.index("--covariates") + 1] = str(late)
    code, _, err = say(*words)
    assert code == 1
    assert "nothing that a bar of the candles could know" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (choose("model.kind=flash"), "they are a modality of the kind trading"),
        (choose("model.kind=glm"), "they are a modality of the kind trading"),
    ],
)
def test_other_networks_refuse_them(words: tuple[str, ...], sentence: str, say: Say) -> None:
    code, _, err = say("train", "--data", "x.csv", "--out", "y", "--covariates", "v.csv", *words)
    assert code == 2
    assert sentence in err


def config(folder: Path, path: Path, vectors: str = 'covariates = "news.csv"') -> Path:
    path.write_text(
        '[market]\nsymbols = ["AAAUSDT"]\n[strategy]\nname = "attention"\n'
        f'[model]\ncheckpoint = "{folder / "out"}"\nthreads = 1\n{vectors}\n'
        '[gate]\nhorizon = 30\ndirection = "0.3"\nedge = "0.001"\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def replayed(folder: Path) -> Path:
    """Return a database with one replay, whose file of covariates has gone since."""
    place = folder / "replay"
    place.mkdir()
    written(place / "news.csv", ("heat", "mood"))  # found by their names
    file, database = config(folder, place / "c.toml"), place / "run.db"
    candles = folder / "few" / "bybit_linear_AAAUSDT_1m.csv.gz"
    words = ("replay", "-c", file, "--data", candles, "--db", database, "--json")
    assert invoke([str(word) for word in words]) == 0
    (place / "news.csv").unlink()
    return database


def test_a_replay_verifies_by_the_file_that_it_kept(replayed: Path, say: Say) -> None:
    code, out, err = say("verify", "last", "--db", replayed, "--json")
    assert code == 0, err
    assert json.loads(out)["agreed"] == 900


def test_verify_says_which_file_was_changed_and_which_is_missing(replayed: Path, say: Say) -> None:
    (kept,) = kept_covariates(replayed).iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(b",-", b",", 1))
    code, _, err = say("verify", "last", "--db", replayed)
    assert code != 0
    assert f"{kept} was changed since the run" in err
    kept.unlink()
    code, _, err = say("verify", "last", "--db", replayed)
    kept.write_bytes(whole)
    assert code != 0
    assert "covariates that the run used are not kept any more" in err


def test_bars_before_the_first_vector_are_refused_as_not_finite(replayed: Path, say: Say) -> None:
    asked = (
        "select refused_by, count(*) n from v_decisions where refused_by in ('finite', 'warm') "
        "group by refused_by order by 1"
    )
    code, out, err = say("audit", "sql", asked, "--db", replayed, "--json")
    assert code == 0, err
    found = {row["refused_by"]: row["n"] for row in json.loads(out)}
    assert found == {"finite": FIRST - 495, "warm": 495}


def test_the_full_explanation_has_the_share_of_the_vectors(replayed: Path, say: Say) -> None:
    code, out, err = say("explain", "last:890", "--full", "--db", replayed, "--json")
    assert code == 0, err
    parts = json.loads(out)["full"]["attribution"]["modalities"]
    shares = {part["modality"]: part["weight"] for part in parts}
    assert shares.keys() == {"price", "volume", "time", "vectors"}
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)
    assert shares["vectors"] > 0


def test_a_run_without_its_vectors_is_refused(folder: Path, tmp_path: Path, say: Say) -> None:
    candles = folder / "few" / "bybit_linear_AAAUSDT_1m.csv.gz"
    cases = {
        "": "was trained with the covariates mood, heat; name a file of them by [model] covariates",
        'covariates = "none.csv"': "none.csv cannot be read",
    }
    for given, sentence in cases.items():
        file = config(folder, tmp_path / "c.toml", given)
        code, _, err = say("replay", "-c", file, "--data", candles, "--db", tmp_path / "r.db")
        assert code != 0
        assert sentence in err
    written(tmp_path / "news.csv", ("mood",))
    file = config(folder, tmp_path / "c.toml")
    code, _, err = say("replay", "-c", file, "--data", candles, "--db", tmp_path / "r.db")
    assert "lacks the column 'heat', which the model was trained with" in err


def test_a_file_without_a_row_of_the_symbol_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, say: Say
) -> None:
    lines = (folder / "news.csv").read_text(encoding="utf-8").splitlines()
    own = [line.replace(",", ",BBBUSDT,", 1) for line in lines[1:]]
    text = "\n".join(["time,symbol,mood,heat", *own])
    (tmp_path / "news.csv").write_text(text, encoding="utf-8")
    candles = folder / "few" / "bybit_linear_AAAUSDT_1m.csv.gz"
    file = config(folder, tmp_path / "c.toml")
    words = ("replay", "-c", file, "--data", candles, "--db", tmp_path / "r.db")
    code, _, err = say(*words)
    assert code == 1
    assert "has no row of AAAUSDT; add some" in err
    (tmp_path / "news.csv").write_text("\n".join(lines), encoding="utf-8")
    file.write_text(file.read_text("utf-8").replace("horizon = 30", "horizon = 7"), "utf-8")
    code, _, err = say(*words)
    assert code == 2, err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["c.toml", "news.csv"]


def test_what_cannot_use_them_is_refused(folder: Path, tmp_path: Path, say: Say) -> None:
    written(tmp_path / "news.csv")
    candles = folder / "few" / "bybit_linear_AAAUSDT_1m.csv.gz"
    cases = {
        'covariates = "news.csv"\nretrain = "7d"': "is not retrained in service",
        'covariates = "news.csv"\nclass = "tree:Tree"': "[model] covariates are a checkpoint's",
    }
    for given, sentence in cases.items():
        file = config(folder, tmp_path / "c.toml", given)
        code, _, err = say("replay", "-c", file, "--data", candles, "--db", tmp_path / "r.db")
        assert code == 2
        assert sentence in err


def test_evaluate_takes_them_and_asks_for_them(folder: Path, say: Say) -> None:
    data = (
        "--data",
        folder / "bybit_linear_AAAUSDT_1m.csv.gz",
        *choose("evaluation.explained_bars=500"),
    )
    vectors = ("--covariates", folder / "news.csv")
    code, out, err = say(
        "evaluate", folder / "out", *data, *vectors, *choose("evaluation.threads=1"), "--json"
    )
    assert code == 0, err
    assert json.loads(out)["id"] == load(folder / "out").id
    code, _, err = say("evaluate", folder / "out", *data)
    assert code == 2
    assert "--covariates FILE" in err
    code, _, err = say("evaluate", "default", *data, *vectors)
    assert code == 2
    assert "was trained without covariates" in err


def test_the_condition_of_the_network_is_checked_over_real_vectors(folder: Path, say: Say) -> None:
    data = ("--data", folder / "bybit_linear_AAAUSDT_1m.csv.gz")
    code, out, err = say(
        "models", "check", folder / "out", *data, "--covariates", folder / "news.csv", "--json"
    )
    assert code == 0, (out, err)
    assert json.loads(out)["model_id"] == load(folder / "out").id
    code, _, err = say("models", "check", folder / "out", *data)
    assert code == 2
    assert "was trained with the covariates mood, heat; give a file of them by --covariates" in err


def test_rows_that_come_later_change_no_decision_before_them(
    folder: Path, replayed: Path, tmp_path: Path, say: Say
) -> None:
    cut = START_MS + MINUTE_MS * 800
    rows = (folder / "news.csv").read_text(encoding="utf-8").splitlines()
    changed = [
        f"{row.split(',')[0]},9,9" if row[0].isdigit() and int(row.split(",")[0]) > cut else row
        for row in rows
    ]
    (tmp_path / "news.csv").write_text("\n".join(changed), encoding="utf-8")
    file, database = config(folder, tmp_path / "c.toml"), tmp_path / "other.db"
    candles = folder / "few" / "bybit_linear_AAAUSDT_1m.csv.gz"
    code, _, err = say("replay", "-c", file, "--data", candles, "--db", database, "--json")
    assert code == 0, err
    asked = "select open_time_ms, mean_return from v_decisions order by open_time_ms"
    both = []
    for one in (replayed, database):
        code, out, err = say("audit", "sql", asked, "--db", one, "--json")
        assert code == 0, err
        both.append([(row["open_time_ms"], row["mean_return"]) for row in json.loads(out)])
    differ = [one[0] for one, two in zip(*both, strict=True) if one != two]
    assert differ
    assert min(differ) == int(AT[cut < AT][0]) - 30_000  # the bar that closed after it


def test_a_run_does_not_go_on_with_another_file(replayed: Path, tmp_path: Path) -> None:
    (kept,) = kept_covariates(replayed).iterdir()
    file = tmp_path / "news.csv"
    with Reader.open(replayed) as reader:
        run = reader.stored_run(reader.find("last")).run
    given = restore(run.config).beside(tmp_path)
    goes_on = []
    for text in (kept.read_text("utf-8"), kept.read_text("utf-8").replace(",-", ",", 1)):
        file.write_text(text, encoding="utf-8")
        model = load_forecaster(given, mode="scan")
        goes_on.append(continues(run, given, model, model_sha256=run.model_sha256))
    assert goes_on == [True, False]


def test_a_bar_that_a_sessions_end_cuts_short_has_no_row_of_later(tmp_path: Path) -> None:
    hour, half = 3_600_000, 1_800_000
    path = stock_files.write(
        tmp_path / "nasdaq_AAA_30m.csv", stock_files.opens("2015-01-02", "2015-06-30", half)
    )
    [hours] = read_files([f"AAA={path}"], (hour,), calendar="XNAS").candles[hour]
    evening = np.flatnonzero(np.diff(hours.closes_ms) > 10 * hour)
    at = hours.closes_ms[evening] + 600_000  # before an hour after the last bar's open is over
    rows = rows_of(at, np.arange(1.0, 1 + len(at))[:, None] / 100)
    joined = CovariateColumns(
        CovariateScale(("mood",), (0.0,), (1.0,)), FixedCovariates("", {"": rows})
    )
    (segment,) = joined_to(segments_of(hours, schema("v2-1h")), joined)
    first, own = segment.first, segment.values[segment.first :]
    known = np.searchsorted(at, hours.closes_ms[first:], side="right")
    assert own[:, 78] == pytest.approx(known / 100)
    assert set(np.flatnonzero(np.diff(known)) + first) <= set(evening)
    wide, bars = with_covariates(schema("v2-1h"), joined), bars_of(hours)
    assert np.array_equal(compute(wide, columns(bars)).values[first:], own)
    streams = FeatureStreams(wide)
    stepped = np.concatenate([streams.step([one]).values for one in bars])
    assert np.array_equal(stepped[first:, 78:], own[:, 78:])
