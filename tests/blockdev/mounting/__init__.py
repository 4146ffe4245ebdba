"""`s3block mount`, on a model of a host. The real one: tests/guest/test_installed.py."""
