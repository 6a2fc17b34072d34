"""The SQLite file: connection, schema, lock, reader, stable views."""
