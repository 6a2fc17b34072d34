"""The data types, in processing order: instruments and events, then decisions and steps."""
