"""How good a model is: on folds before, and on spans that nothing was chosen on."""
