"""Broken and hostile input of every kind that `oper` reads, made from a seed; see ../fuzz.py."""
