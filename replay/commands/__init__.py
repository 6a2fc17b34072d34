"""The commands over data and recorded runs."""
