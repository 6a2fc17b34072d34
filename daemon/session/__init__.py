"""A run from configuration to end: built, resumed, predicted, supervised."""
