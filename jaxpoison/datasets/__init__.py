"""Labelled images: the type, and loaders."""
