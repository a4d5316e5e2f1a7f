"""The command `ray-fed ledger`: prove what left the silos, and where a model came from."""
