"""Files of vectors: what is read of them, what is refused, and what is kept beside a database."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tracepaper.storage.covariates import (
    GrowingFile,
    find_covariates,
    keep_covariates,
    read_covariates,
)
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid

NOON_MS = 1_717_243_200_000  # 2024-06-01T12:00Z
GOOD = "time,mood\n2024-06-01T12:00:00Z,0.5\n2024-06-01T12:01:00Z,-1\n"


def written(folder: Path, text: str, name: str = "news.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_times_with_any_zone_and_milliseconds_are_the_same_rows(tmp_path: Path) -> None:
    texts = {
        "a.csv": GOOD,
        "b.csv": GOOD.replace("12:00:00Z", "14:00:00+02:00"),
        "c.csv": f"mood,time\n0.5,{NOON_MS}\n-1,{NOON_MS + 60_000}\n",
    }
    for name, text in texts.items():
        covariate_file = read_covariates(written(tmp_path, text, name))
        assert covariate_file.columns == ("mood",)
        assert covariate_file.rows[""].time_ms.tolist() == [NOON_MS, NOON_MS + 60_000]
        assert covariate_file.rows[""].values.tolist() == [[0.5], [-1.0]]


def test_a_broken_millisecond_is_rounded_up_so_that_nothing_is_known_early(tmp_path: Path) -> None:
    text = "time,mood\n2024-06-01T12:00:00.000001Z,1\n"
    assert read_covariates(written(tmp_path, text)).rows[""].time_ms.tolist() == [NOON_MS + 1]
    nanoseconds = pa.array([NOON_MS * 1_000_000 + 1], pa.timestamp("ns", "UTC"))
    path = tmp_path / "news.parquet"
    parquet.write_table(pa.table({"time": nanoseconds, "mood": [1.0]}), path)
    assert read_covariates(path).rows[""].time_ms.tolist() == [NOON_MS + 1]


def test_rows_are_parted_by_their_symbols(tmp_path: Path) -> None:
    text = f"time,symbol,a,b\n{NOON_MS},BTCUSDT,1,2\n{NOON_MS},ETHUSDT,3,4\n"
    by_symbol = read_covariates(written(tmp_path, text)).chosen(["b"])
    assert {symbol: rows.values.tolist() for symbol, rows in by_symbol.items()} == {
        "BTCUSDT": [[2.0]],
        "ETHUSDT": [[4.0]],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no rows"),
        (f"time\n{NOON_MS}\n", "0 columns of numbers"),
        ("time,mood\n2024-06-01T12:00:00,1\n", "row 1: the time '2024-06-01T12:00:00' has no zone"),
        ("time,mood\n1717243200,1\n", "no milliseconds of the epoch"),
        (
            f"time,mood\n{NOON_MS},1\n{NOON_MS - 1},2\n",
            r"row 2: .* is before the last one; times must ascend",
        ),
        (f"time,mood\n{NOON_MS},1\n{NOON_MS},2\n", "row 2: .* repeats the one before"),
        (f"time,symbol,mood\n{NOON_MS},A,1\n{NOON_MS},B,1\n{NOON_MS},A,1\n", "row 3: .* of A"),
        (f"time,symbol,mood\n{NOON_MS},,1\n", "row 1: the symbol is empty"),
        (f"time,mood\n{NOON_MS},nan\n", "row 1: mood is 'nan'; every covariate must be finite"),
        (f"time,mood\n{NOON_MS},high\n", "row 1: mood is 'high', which is no number"),
        (f"time,mood\n{NOON_MS},1,2\n", "line 2: 3 fields where the first line has 2"),
        (f"time,mood,mood\n{NOON_MS},1,2\n", "names a column twice"),
        (f"time,mood,vector_mood\n{NOON_MS},1,2\n", "two of one feature's name"),
        (f"time,good mood\n{NOON_MS},1\n", "a column 'good mood'"),
    ],
)
def test_a_file_that_cannot_be_believed_is_refused_in_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(DataInvalid, match=sentence):
        read_covariates(written(tmp_path, text))


def test_parquet_is_refused_alike(tmp_path: Path) -> None:
    path = tmp_path / "news.parquet"
    naive = pa.array([NOON_MS], pa.timestamp("ms"))
    parquet.write_table(pa.table({"time": naive, "mood": [1.0]}), path)
    with pytest.raises(DataInvalid, match="zone"):
        read_covariates(path)
    parquet.write_table(pa.table({"time": [NOON_MS], "mood": [None]}), path)
    with pytest.raises(DataInvalid, match="finite"):
        read_covariates(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataInvalid, match="is damaged"):
        read_covariates(path)


def test_no_file_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="cannot be read"):
        read_covariates(tmp_path / "none.csv")
    with pytest.raises(DataInvalid, match=r"ends in \.csv or \.parquet"):
        read_covariates(written(tmp_path, GOOD, "news.txt"))


def test_a_column_that_the_model_knows_and_the_file_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="lacks the column 'heat', which the model was trained"):
        read_covariates(written(tmp_path, GOOD)).chosen(["mood", "heat"])


def test_of_a_growing_file_a_line_that_is_not_ended_waits(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "2024-06-01T12:02:00Z,0.")
    assert len(GrowingFile(path).read().file.rows[""]) == 2
    assert len(read_covariates(path).rows[""]) == 3


def test_what_is_kept_is_found_by_its_hash_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    file, database = read_covariates(written(tmp_path, GOOD)), tmp_path / "run.db"
    with pytest.raises(CheckpointMismatch, match="are not kept any more"):
        find_covariates(database, file.sha256)
    kept = keep_covariates(file, database)
    file.path.unlink()
    assert find_covariates(database, file.sha256).rows[""].values.tolist() == [[0.5], [-1.0]]
    kept.write_text(GOOD.replace("0.5", "0.6"), encoding="utf-8")
    with pytest.raises(CheckpointMismatch, match="was changed after the run"):
        find_covariates(database, file.sha256)
