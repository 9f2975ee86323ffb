"""The seam between decoding and models, and the runtimes that fulfil it."""
