"""What a coordinator can still learn from updates, and what limits it: noise, masks, and fewer bits."""
