"""Targets, splits, fitting, evaluation, model card."""
