"""How near a reconstruction is to the truth. Only the owner of the truth can ask."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

SUCCESS = (1e-2, 1e-3)
"""Mean squared errors (inputs in [0, 1]) below which a reconstruction counts as near, and as exact."""


def mean_squared_errors(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the error of each sample, found and truth [n, samples, ...] -> [n, samples], in the truth's order.

    A batch has no order: found samples are paired with true ones so that the sum of errors is smallest.
    """
    found = torch.nan_to_num(found, nan=1e6, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6)
    if truth.shape[1] == 1:
        return (found - truth).square().flatten(2).mean(2)
    table = (found[:, :, None] - truth[:, None]).square().flatten(3).mean(3)
    return torch.stack([_paired(costs) for costs in table])


def _paired(costs: torch.Tensor) -> torch.Tensor:
    rows, columns = linear_sum_assignment(costs.cpu().numpy())
    errors = torch.empty(len(costs), dtype=costs.dtype)
    errors[columns] = costs.cpu()[rows, columns]
    return errors


def psnr(mse: np.ndarray, value_range: float = 1.0) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB for values that span `value_range`; infinite for equal images."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(value_range**2 / np.asarray(mse, np.float64))


def ssim(found: np.ndarray, truth: np.ndarray, value_range: float = 1.0) -> float:
    """Return the structural similarity of two images [channels, height, width]; found values are cut to the range."""
    from skimage.metrics import structural_similarity

    window = min(7, *(size - 1 + size % 2 for size in truth.shape[1:]))
    found = np.clip(np.nan_to_num(found), 0, value_range)
    value = structural_similarity(found, truth, channel_axis=0, data_range=value_range, win_size=window)
    return float(np.asarray(value, np.float64))


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a success rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    spread = z * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    middle, scale = rate + z**2 / (2 * trials), 1 + z**2 / trials
    return max(0.0, float((middle - spread) / scale)), min(1.0, float((middle + spread) / scale))


def difference_interval(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two success rates, each (successes, trials), taken as independent
    (Newcombe 1998, method 10). Of the same images it is rather too wide than too narrow."""
    (a, n), (b, m) = first, second
    (low_a, high_a), (low_b, high_b) = wilson_interval(a, n), wilson_interval(b, m)
    rate_a, rate_b = a / max(1, n), b / max(1, m)
    below = np.hypot(rate_a - low_a, high_b - rate_b)
    above = np.hypot(high_a - rate_a, rate_b - low_b)
    return float(rate_a - rate_b - below), float(rate_a - rate_b + above)
