"""Carrying out a plan, line by line, and looking at what the mirror holds."""
