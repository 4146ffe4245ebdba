"""The agent in a guest: saves and restores the home. Python 3.9 and its standard library; nothing else of ours."""
