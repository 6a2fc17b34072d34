"""Backtests and replays through the daemon's engine."""
