"""What a record and a strategy are held to: verify, parity, lookahead, recursive."""
