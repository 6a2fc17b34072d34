"""Bybit v5: typed messages, a sans-I/O reader, websocket and REST."""
