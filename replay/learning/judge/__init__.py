"""How good a model is: on folds, on holdouts, compared with baselines and other models."""
