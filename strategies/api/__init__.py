"""What a strategy is written against: its context, its answers, its sizes, its model."""
