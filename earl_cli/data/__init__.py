"""Training data: pairs of pictures in, a token store on disk, batches out."""
