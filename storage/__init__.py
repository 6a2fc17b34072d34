"""What we remember: the audit log, the archive, checkpoints."""
