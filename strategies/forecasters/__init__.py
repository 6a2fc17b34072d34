"""Networks behind the Forecaster protocol; tensors stop here."""
