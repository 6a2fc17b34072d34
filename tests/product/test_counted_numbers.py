"""What a bar costs in bytes, calls, statements and rows keeps to its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_asked import ASKED, NUMBERED, too_far


@pytest.mark.usefixtures("one_thread")
def test_what_a_bar_costs_keeps_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = {topic: rows for topic, rows in ASKED.items() if topic != NUMBERED}
    assert too_far(others) == []
