"""The configuration: sections, keys, loading, and the documented file."""
