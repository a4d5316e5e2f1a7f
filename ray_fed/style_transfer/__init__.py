"""Style generators that move between silos: label -> micrograph networks, their training, weight codecs, checks."""
