"""The database: opened, locked, read back, and asked through stable views."""
