"""Apps written to Flower's documented interfaces, of both generations: what users bring. Nothing of ray-fed is in
them."""
