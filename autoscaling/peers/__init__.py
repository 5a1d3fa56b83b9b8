"""Other systems' scaling policies, each small, for comparison inside the simulator."""
