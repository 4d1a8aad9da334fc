"""The tables of the noise schedule that a checkpoint of the release stores together with its parameters."""

import numpy as np

from mperceiver_jax.diffusion.schedule import Schedule


def schedule_tables(schedule: Schedule) -> dict[str, np.ndarray]:
    """The twelve float32 tables, (steps,) each, under the release's names; no part of the model is trained here.

    `posterior_*` describe q(x_{t-1} | x_t, x_0): its mean is coef1 * x_0 + coef2 * x_t. Its variance is
    zero at t = 0, where the logarithm is that of 1e-20. Source: Ho et al. 2020, equations 6 and 7.
    """
    betas, alphas = schedule.betas, schedule.alphas_cumprod
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    tables = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alphas),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
    }
    return {name: table.astype(np.float32) for name, table in tables.items()}
