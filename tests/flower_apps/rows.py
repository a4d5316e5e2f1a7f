"""What the apps learn: points of two classes, each partition with another share of them."""

import numpy as np


def points(partition: int, num: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return (features float32 [num, 4], classes int64 [num])."""
    drawn = np.random.default_rng(partition)
    features = drawn.normal(size=(num, 4)).astype(np.float32)
    features[:, 3] += partition % 10
    return features, (features[:, 0] - features[:, 1] + 0.2 * drawn.normal(size=num) > 0).astype(np.int64)
