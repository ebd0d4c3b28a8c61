"""Layer-wise relevance propagation over Flax modules."""
