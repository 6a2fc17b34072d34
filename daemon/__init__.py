"""The engine, and the shell around it."""
