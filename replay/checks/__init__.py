"""Checks of records and strategies: verify, parity, lookahead, recursive."""
