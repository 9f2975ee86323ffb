"""Evaluation: what drafting is worth, method by method, and how two evaluations differ."""
