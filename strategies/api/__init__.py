"""What users write against: strategies, models, their context, signals and orders."""
