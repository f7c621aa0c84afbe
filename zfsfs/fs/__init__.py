"""The tree that is mounted."""
