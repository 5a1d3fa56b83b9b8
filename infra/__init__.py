"""What surrounds the cluster: weights, command line, dashboards."""
