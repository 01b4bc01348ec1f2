"""Who takes part: the agent, the world, and both in one."""
