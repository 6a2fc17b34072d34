"""Bars to one row of features a bar, causal by construction: ``compute`` and ``schema``."""

from __future__ import annotations

from tracepaper.strategies.features.rows import compute, schema

__all__ = ["compute", "schema"]
