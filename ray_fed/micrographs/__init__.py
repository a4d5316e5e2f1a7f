"""Micrographs of polycrystals: where they come from, how grains are compared, the network that finds boundaries."""
