"""Performance and attention figures of a run."""
