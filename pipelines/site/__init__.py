"""A site, by and for its owner: `ray-fed site init | check | start | key`."""
