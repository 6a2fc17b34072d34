"""Forecasts and judgements: pure, no I/O, no clock."""
