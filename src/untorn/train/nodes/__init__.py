"""Training on several nodes: the pool of nodes in the driver, and what a node does."""
