"""How much each transition matters: a weight per transition, non-negative, mean 1."""
