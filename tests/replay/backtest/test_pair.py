"""The pair at scale: two symbols, one strategy, opposite positions opened at the same close."""

from __future__ import annotations

from pathlib import Path

import pytest
from pair_cases import cointegrated, configured
from recordings import record

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enter": 0.5, "leave": 2.0}, "leave 2 must be under enter 0.5"),
        ({"window": 0}, "Pair.warmup is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, float], words: str, tmp_path: Path
) -> None:
    from tracepaper.strategies.errors import ConfigInvalid

    config = configured(strategy={"options": options})
    with pytest.raises(ConfigInvalid, match=words):
        record(tmp_path / "a.db", config, cointegrated(10))
