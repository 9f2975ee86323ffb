"""How far to draft: controllers, the acceptance head, and the stop-loss."""
