"""Places: puts ray_fed's plain objects on machines. Every call of Ray in the runtime is in this package."""
