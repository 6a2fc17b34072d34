"""``document``: tables, charts and texts as values, and their three writers."""
