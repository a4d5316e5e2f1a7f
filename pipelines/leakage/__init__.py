"""Gradient leakage: the attacks on images side by side, and the audit of a federation of ours."""
