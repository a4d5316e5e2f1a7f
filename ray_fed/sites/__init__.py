"""Silos at sites that their owners run: what is said between a site and a coordinator, and over which connection."""
