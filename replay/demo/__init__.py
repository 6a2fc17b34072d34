"""``tracepaper demo``: a month of candles at speed, or a user's own candles."""
