"""Commands around a cluster: certificates for it, a check of it, and the progress of a run on it."""
