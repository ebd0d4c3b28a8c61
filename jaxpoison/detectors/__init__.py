"""Detectors, one file each; none ever sees what is poisoned."""
