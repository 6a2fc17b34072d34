"""The process around the engine: a run built, resumed, predicted, supervised."""
