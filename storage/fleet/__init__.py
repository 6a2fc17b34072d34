"""The record of a fleet: databases shipped into one PostgreSQL, and pulled back."""
