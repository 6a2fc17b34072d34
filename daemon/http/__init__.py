"""Health, metrics, status and commands on loopback."""
