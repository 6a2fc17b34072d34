"""What comparing two runs found, as a document."""

from __future__ import annotations

import json
from dataclasses import asdict

from tracepaper.replay.checks.parity import Parity


def test_what_only_time_explains_is_counted_by_the_gates_name() -> None:
    found = Parity("one", "two", exact=True)
    found.timing["late"] = 2
    assert json.loads(json.dumps(asdict(found)))["timing"] == {"late": 2}
