"""Which experiment: each pipeline says what is trained, on which silos, and what is left behind."""
