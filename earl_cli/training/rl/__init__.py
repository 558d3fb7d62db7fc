"""Reinforcement learning: GRPO on images."""
