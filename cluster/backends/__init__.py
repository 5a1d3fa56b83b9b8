"""How nodes of a site are started and stopped; every backend passes one contract suite."""
