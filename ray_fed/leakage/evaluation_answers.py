"""Who is among the rows on which a silo marks models: each answer is an equation for it.

A silo tells the mean of its absolute errors under each global model. For an attacker with candidate records and their
targets that is one linear equation a model in who is there, with coefficients that he computes himself:

    e = E z / n      e [models]: told      E [models, candidates]: absolute errors      z [candidates]: 0 or 1

Few equations for many unknowns, and answers of few digits: what comes out is the z of the smallest length, about its
mean, that fits within the digits.
"""

import numpy as np

ROUNDING = 0.01
"""Of what is told, about: the ridge is its square."""


def scores(told: np.ndarray, errors: np.ndarray, count: int) -> np.ndarray:
    """Return how strongly each candidate [candidates] is suspected to be among the rows.

    told [models]: mean absolute errors, those that are not finite are left out; errors [models, candidates]; count:
    rows of the silo, as it tells them.
    """
    is_told = np.isfinite(told)
    told, errors = told[is_told], errors[is_told]
    if not len(told):
        return np.zeros(errors.shape[1])
    missing = told - errors.mean(1)  # of a choice by chance
    apart = (errors - errors.mean(1, keepdims=True)) / count
    ridge = np.square(ROUNDING * told).mean()
    return apart.T @ np.linalg.solve(apart @ apart.T + ridge * np.eye(len(told)), missing)
