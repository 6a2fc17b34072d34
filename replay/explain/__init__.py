"""Why one decision: what was stored of it, what would flip it, and on request what moved it."""
