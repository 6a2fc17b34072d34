"""The core: attention, rollout and entropy without a stored attention matrix."""
