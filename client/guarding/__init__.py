"""What keeps learning from doing harm: the guard of the newest adapter, and the diagnosis."""
