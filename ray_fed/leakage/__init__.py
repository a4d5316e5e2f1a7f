"""Gradient leakage: what a training message reveals about the samples behind it, and what stops that."""
