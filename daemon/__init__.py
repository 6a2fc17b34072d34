"""The engine, the paper broker, the feed, and the process around them."""
