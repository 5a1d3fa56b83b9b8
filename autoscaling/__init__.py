"""What decides how many nodes and replicas there are."""
