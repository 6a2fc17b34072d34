"""The remedies that a refusal of candles prints, carried out as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from tracepaper.replay.archive import Candles, read_candles


def converted(path: Path, sentence: str) -> Candles:
    """Read the file at *path* by the lines of pandas, or the options, that *sentence* prints."""
    if lines := re.search(r"by pandas[^:]*: (frame = .*)\.$", sentence):
        exec(lines[1], {"pandas": pd})
        return read_candles(path.with_name(f"{path.name.split('.', 1)[0]}_new.csv"))
    return read_candles(path, columns=re.findall(r"--columns (\w+=\w*)", sentence))
