"""The gates; importing this package declares all of them."""

from __future__ import annotations

from tracepaper.strategies.gates import declared as declared
