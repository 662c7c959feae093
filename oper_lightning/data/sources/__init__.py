"""Readers of recorded transitions, one file per format. None of them can run code found in a file."""
