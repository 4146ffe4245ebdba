"""Fuzz targets for everything that reads bytes from a peer: `targets` holds them, `__main__` drives one by hand."""
