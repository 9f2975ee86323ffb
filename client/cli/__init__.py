"""The commands of a device: generate, adapt, eval, state, vocabulary."""
