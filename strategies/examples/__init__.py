"""Example strategies, each an ordinary user class."""
