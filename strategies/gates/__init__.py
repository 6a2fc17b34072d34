"""The gates; importing this room declares them all."""

from __future__ import annotations

from tracepaper.strategies.gates import declared as declared
