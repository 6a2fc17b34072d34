"""Causal features of bars, one row per bar: ``columns``, ``compute``, ``schema``."""

from __future__ import annotations

from tracepaper.strategies.features.rows import columns, compute, schema

__all__ = ["columns", "compute", "schema"]
