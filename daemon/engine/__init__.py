"""The engine: pure, from one event to one step."""
