"""``tracepaper demo``: a month of candles at speed."""
