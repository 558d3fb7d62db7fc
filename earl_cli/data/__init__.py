"""Training data: from images and instructions to a token store on disk, and from stores to batches."""
