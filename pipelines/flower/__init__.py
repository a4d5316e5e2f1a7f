"""Apps written for Flower, run on silos of this runtime."""
