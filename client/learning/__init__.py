"""Learning from what the target decides: lessons, replay, objective, training step, schedule."""
