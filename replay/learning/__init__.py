"""What is learnt from data: datasets, recipes, estimators, fits, evaluation, inspection."""
