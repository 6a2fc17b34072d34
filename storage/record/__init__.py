"""Steps as rows and back: columns, layout, encoding, hashes; pure."""
