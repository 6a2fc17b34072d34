"""Learning from data: datasets, recipes, estimators, fits, evaluation, inspection."""
