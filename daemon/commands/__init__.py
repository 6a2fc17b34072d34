"""The commands of the daemon room, one module each, imported when called."""
