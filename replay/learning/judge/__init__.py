"""How good a model is: on folds, on holdouts, beside baselines and other models."""
