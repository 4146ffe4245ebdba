"""What lies sealed on an encrypted mirror, and the keys that open it."""
