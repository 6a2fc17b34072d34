"""Inspection of a model: ablation, perturbation, permutation, attribution."""
