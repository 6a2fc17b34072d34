"""The same engine over the past."""
