"""Worlds to act in: vectorised rollouts, normalised scores, small tasks of our own."""
