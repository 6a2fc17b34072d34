"""Bars to a row of features a bar, causal by construction: ``columns``, ``compute``, ``schema``."""

from __future__ import annotations

from tracepaper.strategies.features.rows import columns, compute, schema

__all__ = ["columns", "compute", "schema"]
