"""The former room of ``tracepaper.replay.learning``."""
