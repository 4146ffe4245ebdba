"""What is to be done, as a file with a digest; whether it may be done."""
