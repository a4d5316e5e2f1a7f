"""Gradient leakage: what a training message gives away about the samples behind it, and what stops that."""
