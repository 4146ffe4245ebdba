"""The console's server: pages, the REST API, what guests ask, console connections."""
