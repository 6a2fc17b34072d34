"""Features, networks, attention, gates and strategies: pure, no I/O, no clock."""
