"""Degradations made from clean photographs: pure numpy functions (image, rng) -> image.

Every function takes float32 (height, width, 3) in [0, 1] of any size, a `numpy.random.Generator`, and keyword
parameters that fix the severity; a parameter left out is drawn from the range its docstring states. The
input is never modified and the same generator state gives the same image. Lengths are fractions of the
shorter side, so severity does not depend on resolution; noise is per pixel, as on a sensor.
"""

from data_pipelines.degradations.blur import defocus_blur, motion_blur
from data_pipelines.degradations.haze import add_haze
from data_pipelines.degradations.low_light import darken
from data_pipelines.degradations.noise import add_gaussian_noise
from data_pipelines.degradations.rain import add_rain
from data_pipelines.degradations.raindrop import add_raindrops
from data_pipelines.degradations.sensor_noise import add_sensor_noise
from data_pipelines.degradations.snow import add_snow

__all__ = [
    "add_gaussian_noise",
    "add_haze",
    "add_rain",
    "add_raindrops",
    "add_sensor_noise",
    "add_snow",
    "darken",
    "defocus_blur",
    "motion_blur",
]
