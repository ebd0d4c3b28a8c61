"""Training a network: protocols, the step, the loop, checkpoints."""
