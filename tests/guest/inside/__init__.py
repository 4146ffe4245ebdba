"""What runs in the guest: the agent, and what tests call there. Only Python's own library and ours."""
