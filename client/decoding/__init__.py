"""Draft-verify decoding: proposals, their law, verification, and the text that comes of it."""
