"""The page, and the HTTP interface behind it."""
