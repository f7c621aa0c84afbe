"""A filesystem whose directories are a build store."""
