"""The networks, one readable module each."""
