"""The whole system in simulated time, on the decisions that production uses."""
