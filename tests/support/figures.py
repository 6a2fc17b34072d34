"""How a measurement says what it was measured on."""

from __future__ import annotations

import re
from typing import Final

MEASURED_ON: Final = re.compile(
    r"(?:commit [0-9a-f]{9,}(?:\+changes)?|version \S+), [^,]+, \d+ cores, load "
    r"[\d.]+ [\d.]+ [\d.]+, Python [\d.]+, PyTorch [\d.]+"
)
"""The line that every ``tracepaper bench`` prints."""
