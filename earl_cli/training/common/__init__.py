"""What both trainings use: checkpoints, distribution, memory, logs, curves."""
