"""What a new machine is told."""
