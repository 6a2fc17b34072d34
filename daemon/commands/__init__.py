"""The commands of the daemon and its record."""
