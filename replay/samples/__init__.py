"""Bundled real candles and a small checkpoint."""
