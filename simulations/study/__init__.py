"""Experiments on learning: method x task x target, measured before and after online adaptation."""
