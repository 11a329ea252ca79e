"""Training: the loop, its directory, and the pre-training of the shipped text encoder."""
