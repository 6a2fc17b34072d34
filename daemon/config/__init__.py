"""The configuration: its sections and keys, how they are read, and the documented file."""
