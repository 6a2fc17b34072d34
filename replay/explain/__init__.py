"""``explain``: why one decision was made."""
