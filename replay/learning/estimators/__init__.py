"""The kinds of models, one module each."""
