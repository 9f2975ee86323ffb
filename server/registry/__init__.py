"""Releases: where they come from, what became of them, and which one is in force."""
