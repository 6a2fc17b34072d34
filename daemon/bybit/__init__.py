"""Bybit v5: typed frames, a sans-I/O wire, the stream, REST and the live feed."""
