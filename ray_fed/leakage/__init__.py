"""Gradient leakage: what a training message reveals of the samples behind it, and what is found under defences."""
