"""Listing a source: ranges of keys, whoever lists them, and the proof that nothing was left out."""
