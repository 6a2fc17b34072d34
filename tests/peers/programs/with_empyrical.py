"""Value at risk (at other levels) and expected shortfall of returns by empyrical-reloaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import empyrical
import numpy as np

given, answer = map(Path, sys.argv[1:])
task = json.loads(given.read_text(encoding="utf-8"))
returns = np.array(task["returns"])
figures = [
    [empyrical.value_at_risk(returns, at), empyrical.conditional_value_at_risk(returns, level)]
    for level, at in zip(task["levels"], task["at"], strict=True)
]
answer.write_text(json.dumps({"figures": figures}), encoding="utf-8")
