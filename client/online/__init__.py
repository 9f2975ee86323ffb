"""The loop joined: a pair that learns from what it writes, with guard, background and state."""
