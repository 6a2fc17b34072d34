"""``sweep``: many backtests, and how much of the best result is luck."""
