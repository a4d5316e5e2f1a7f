"""Gradient-boosted trees whose federated result has the bits of pooled training: silos answer whole numbers that are
added up, so neither the partition nor the order of arrival can change a digit."""
