"""Real servers that tests start for themselves: on free loopback ports, in their own directory, ended by pid."""
