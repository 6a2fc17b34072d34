"""The engine, and the process around it."""
