"""The numbers that were asked for keep to their limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_asked import ASKED, NUMBERED, too_far


@pytest.mark.usefixtures("one_thread")
def test_every_number_that_was_asked_for_keeps_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert too_far({NUMBERED: ASKED[NUMBERED]}) == []
