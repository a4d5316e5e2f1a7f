"""Federated training as a trainable of Ray Tune: `pipelines.federated_trainable`."""
