"""Strategies to read, to run and to start from; each is a user's class like any other."""
