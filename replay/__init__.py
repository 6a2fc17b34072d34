"""Backtests, training, evaluation, reports, checks, and the embedded exchange."""
