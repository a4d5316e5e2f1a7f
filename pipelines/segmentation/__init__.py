"""Grains of new micrographs, by the model a run has trained."""
