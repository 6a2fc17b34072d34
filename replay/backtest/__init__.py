"""Known events through the daemon's own engine: candle files, or a run's own record."""
