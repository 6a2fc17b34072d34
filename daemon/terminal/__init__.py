"""The terminal of a run: its status, a live view of it, and log lines."""
