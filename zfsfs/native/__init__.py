"""Datasets mounted natively over paths: namespaces, mounts, and starting a process beneath them."""
