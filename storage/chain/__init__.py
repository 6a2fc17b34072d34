"""The hash chain of a run: its verification, the diagnosis of damage, the audit of a file."""
