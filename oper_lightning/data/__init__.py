"""Recorded transitions: where they come from, how they are stored, drawn and handed to an algorithm."""
