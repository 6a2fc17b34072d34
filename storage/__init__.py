"""The record: the audit log, the archive of bars, checkpoints."""
