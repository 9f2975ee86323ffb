"""Vocabularies as byte strings: text to tokens, draft paths, tries, n-grams."""
