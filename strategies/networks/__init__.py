"""One readable file a network."""
