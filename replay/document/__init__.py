"""``document``: tables, charts and paragraphs as values, and their three writers."""
