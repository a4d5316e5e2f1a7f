"""Apps written for Flower, on silos of this runtime: `pipelines.run_flower_app`, and the command `ray-fed flower`."""
