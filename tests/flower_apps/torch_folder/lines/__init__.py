"""A folder as `flwr run` takes it."""
