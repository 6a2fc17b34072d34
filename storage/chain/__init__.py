"""The hash chain of a run: its walk, the diagnosis of a break, the judgement of the whole file."""
