"""The chain of a run: walked, diagnosed, judged with the whole file."""
