"""Networks, their layers, and running them."""
