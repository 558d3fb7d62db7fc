"""Training: supervised fine-tuning on token stores."""
