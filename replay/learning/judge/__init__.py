"""How good a model is: on holdouts, compared with baselines and other models."""
