"""Sweeps: many runs over the same silos, which open their data once."""
