"""The terminal of a run: a live view, or log lines."""
