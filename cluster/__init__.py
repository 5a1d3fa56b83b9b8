"""Nodes, sites and money: what exists, what it costs, how it is started and stopped."""
