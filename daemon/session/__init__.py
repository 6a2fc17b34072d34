"""A run from its configuration to its end: built, opened, predicted, supervised."""
