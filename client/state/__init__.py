"""What outlives the process: the private file, its lock, its journal of decisions."""
