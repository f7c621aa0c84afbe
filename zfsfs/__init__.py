"""A filesystem whose directories are a build store."""

__version__ = "0.1.0"
