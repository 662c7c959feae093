"""Runs and data as tables and pictures."""
