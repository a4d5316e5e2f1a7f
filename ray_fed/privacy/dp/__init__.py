"""Differential privacy: noise in a silo for its examples or in the aggregate for whole silos, and the account."""
