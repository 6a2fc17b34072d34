"""Whether an exchange served a run of a database before, whatever stands in its rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import storage_cases as cases
from msgspec.structs import replace

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.session.open import was_served
from tracepaper.strategies.types import RunKind

SERVED = load(None, {"market": {"symbols": ["BTCUSDT", "ETHUSDT"]}})


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, True),  # a part of what was traded
        ({"symbols": ["SOLUSDT"]}, False),
        ({"category": "spot"}, False),
    ],
)
def test_a_market_that_was_traded_was_served(
    tmp_path: Path, sections: dict[str, object], expected: bool
) -> None:
    path = tmp_path / "run.db"
    changed = replace(cases.run("changed"), kind=RunKind.LIVE, config="{}")
    served = replace(cases.run("served"), kind=RunKind.LIVE, config=SERVED.canonical_json())
    cases.write_run(path, cases.plain_steps(3), of=changed)
    assert not was_served(SERVED, RunKind.LIVE, path)  # a row that says nothing is no traceback
    cases.write_run(path, cases.plain_steps(3), of=served)
    assert was_served(load(None, {"market": sections}), RunKind.LIVE, path) is expected
