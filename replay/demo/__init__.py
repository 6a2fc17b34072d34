"""What ``tracepaper demo`` does: a month of candles as a race, or candles of the user's own."""
