"""Forecasters: networks behind the ``Forecaster`` protocol, which returns no tensors."""
