"""Notation, vocabularies, adapters, losses and messages that every folder shares; it knows no runtime."""
