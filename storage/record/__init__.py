"""Steps as rows and back: columns, layout, encoding and hashes; pure."""
