"""Training: supervised fine-tuning and reinforcement learning."""
