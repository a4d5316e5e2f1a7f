"""What a cluster of institutions needs besides Ray: certificates, and what is to be checked before a run."""
