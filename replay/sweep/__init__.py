"""Many replays at once, and how much of the best of them is luck."""
