"""Forecasters: networks behind the ``Forecaster`` protocol; no tensor leaves this room."""
