"""The remedies that a refusal of candles prints, carried out as printed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pandas as pd

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.strategies.errors import TracepaperError

MOST: Final = 6
"""So many refusals in a row are a circle."""


def followed(
    path: str | Path,
    names: Mapping[str, str] = MappingProxyType({}),
    order: Sequence[str] = (),
) -> Candles:
    """Read the file at *path*, once all lines of pandas that its refusals print were run.

    *names* has the column of each field that a line asks for by NAME, *order* those of a file
    without a header.
    """
    for _ in range(MOST):
        try:
            return read_candles(path)
        except TracepaperError as error:
            path = written_anew(str(error), names, order)
    raise AssertionError(f"{path} is refused again and again")


def written_anew(
    sentence: str,
    names: Mapping[str, str] = MappingProxyType({}),
    order: Sequence[str] = (),
) -> Path:
    """Run the lines of pandas that *sentence* prints; return the file that they write."""
    printed = re.search(r"by pandas: (frame = .*)\.$", sentence)
    assert printed is not None, sentence
    lines = printed[1]
    for field in re.findall(r"'NAME': '(\w+)'", lines):
        lines = lines.replace("'NAME'", repr(names[field]))
    lines = re.sub(r"\['NAME'(, 'NAME')*\]", lambda _: json.dumps(order), lines)
    exec(lines, {"pandas": pd})
    target = re.search(r"to_csv\('([^']+)'", lines)
    assert target is not None
    return Path(target[1])
