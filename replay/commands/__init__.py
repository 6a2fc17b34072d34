"""The commands of the replay room, one module each."""
