"""Recorded episodes into other formats, one file for each."""
