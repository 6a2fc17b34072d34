"""A transparency log of the record's commits, its keys, and a witness for other people's logs."""
