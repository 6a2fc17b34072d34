"""The feed of any exchange: bars in order, holes filled, a bounded queue, retries."""
