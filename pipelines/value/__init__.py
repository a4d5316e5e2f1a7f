"""What joining is worth to each member, before it commits: learning curves and contribution scores."""
