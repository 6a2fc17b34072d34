"""``document``: tables, charts and paragraphs as values, and their writers."""
