"""What is known to be on the mirror: segments, layers, snapshots."""
