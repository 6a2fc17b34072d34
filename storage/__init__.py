"""The record of runs, the archive of candles, and checkpoints."""
