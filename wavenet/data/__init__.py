"""Training data: from a folder of recordings to batches."""
