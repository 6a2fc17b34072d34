"""What we think: pure, no I/O, no clock."""
