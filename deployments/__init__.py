"""What runs on the nodes: the gateway and the engine pools."""
