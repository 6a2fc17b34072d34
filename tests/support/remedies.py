"""The remedies that a refusal of candles prints, carried out as printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pandas as pd

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.replay.archive.read import NamedFrame
from tracepaper.strategies.errors import TracepaperError

MOST: Final = 4
"""So many refusals in a row are a circle."""
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def followed(given: Any, names: Mapping[str, str] = NOTHING, order: Sequence[str] = ()) -> Candles:
    """Read a file or a frame, once all lines of pandas that its refusals print were run.

    *names* has the column of each field that a line asks for by NAME, *order* those of a file
    without a header.
    """
    for _ in range(MOST):
        try:
            is_file = isinstance(given, str | Path)
            return read_candles(given if is_file else NamedFrame("BTCUSDT", given))
        except TracepaperError as error:
            given = written_anew(str(error), names, order, given)
    raise AssertionError(f"{given} is refused again and again")


def written_anew(
    sentence: str,
    names: Mapping[str, str] = NOTHING,
    order: Sequence[str] = (),
    given: Any = None,
) -> Any:
    """Run the lines of pandas that *sentence* prints; return the file or frame that they make."""
    printed = re.search(r"by pandas: (frame.* = .*)\.$", sentence)
    assert printed is not None, sentence
    lines = re.sub(r"\['NAME'(, 'NAME')+\]", lambda _: str([*order]), printed[1])
    for field in re.findall(r"'NAME': '(\w+)'", lines):
        lines = lines.replace("'NAME'", repr(names[field]))
    lines = lines.replace("frame['NAME']", f"frame[{names.get('volume')!r}]")
    lines = lines.replace("columns='NAME'", f"columns={names.get('again')!r}")
    lines = lines.replace("DAYFIRST", "True")
    made = {"pandas": pd, "frame": given}
    exec(lines, made)
    target = re.search(r"to_csv\('([^']+)'", lines)
    return made["frame"] if target is None else Path(target[1])
