"""Entropic Gromov-Wasserstein distances and barycentres; the only code that imports OTT."""
