"""Rewards of edits: from judges, from the distance to the target, from a user's function, and weighted sums of them."""
