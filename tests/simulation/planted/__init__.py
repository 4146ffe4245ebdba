"""Bugs put in on purpose. Each must be caught by the simulation as it runs in CI, or the simulation is not worth its time.

One rule: a planted bug is a mistake somebody could make in one place of the engine, and its story says which promise it breaks.
"""
