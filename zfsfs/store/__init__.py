"""Builds, caches and their recovery, on any driver."""
