"""What novelty is worth: bonuses on rewards, one file for each way to tell what is new."""
