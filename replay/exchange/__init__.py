"""The embedded exchange: Bybit v5 REST and websocket on loopback."""
