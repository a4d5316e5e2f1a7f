"""Sums that a coordinator learns without learning a summand (Bonawitz et al. 2017)."""
