"""The remedies that a refusal of candles prints, carried out as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from tracepaper.replay.archive import Candles, read_candles


def converted(path: Path, sentence: str) -> Candles:
    """Read the file at *path* by the lines of pandas, or the options, that *sentence* prints."""
    if "by pandas" in sentence:
        return read_candles(written_anew(path, sentence))
    return read_candles(path, columns=re.findall(r"--columns (\w+=\w*)", sentence))


def written_anew(path: Path, sentence: str) -> Path:
    """Run the lines of pandas that *sentence* prints; return the file that they write."""
    lines = re.search(r"by pandas[^:]*: (frame = .*)\.$", sentence)
    assert lines is not None
    exec(lines[1], {"pandas": pd})
    return path.with_name(f"{path.name.split('.', 1)[0]}_new.csv")
