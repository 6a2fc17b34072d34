"""The HTTP interface: health, metrics, status, commands."""
