"""`python -m cowsync`."""

from cowsync.cli import main

main()
