"""The commands over recorded and imported data, one module each."""
