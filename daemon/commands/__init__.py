"""The commands of the daemon and its record, one module each, imported when called."""
