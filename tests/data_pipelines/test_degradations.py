"""The degradations against their formulas, and what they all promise."""

import numpy as np
import pytest

from data_pipelines import degradations
from data_pipelines.degradations import blur, fields, light, rain, raindrop, sensor_noise, snow
from data_pipelines.degradations.haze import synthetic_depth

ALL = [getattr(degradations, name) for name in degradations.__all__]

# Two clearly different values of every severity parameter.
SEVERITIES = [
    (degradations.add_haze, "density", 0.3, 2.0),
    (degradations.add_haze, "airlight", 0.6, 1.0),
    (degradations.add_snow, "density", 0.3, 2.0),
    (degradations.add_snow, "flake", 0.01, 0.05),
    (degradations.add_snow, "motion", 0.0, 6.0),
    (degradations.add_snow, "veil", 0.0, 0.5),
    (degradations.add_gaussian_noise, "sigma", 5, 50),
    (degradations.add_rain, "density", 0.2, 3.0),
    (degradations.add_rain, "length", 0.03, 0.3),
    (degradations.add_rain, "width", 0.02, 0.08),
    (degradations.add_rain, "angle", -40, 40),
    (degradations.add_rain, "brightness", 0.1, 0.9),
    (degradations.motion_blur, "length", 0.05, 0.3),
    (degradations.motion_blur, "angle", 0, 90),
    (degradations.motion_blur, "bend", 0.0, 3.0),
    (degradations.motion_blur, "gamma", 1.0, 2.2),
    (degradations.defocus_blur, "radius", 0.02, 0.1),
    (degradations.defocus_blur, "gamma", 1.0, 2.2),
    (degradations.add_sensor_noise, "iso", 100, 10000),
    (degradations.add_sensor_noise, "red_gain", 1.0, 3.0),
    (degradations.add_sensor_noise, "blue_gain", 1.0, 3.0),
    (degradations.add_sensor_noise, "quality", 20, 95),
    (degradations.add_raindrops, "coverage", 0.02, 0.4),
    (degradations.add_raindrops, "radius", 0.03, 0.15),
    (degradations.darken, "exposure", 0.1, 0.8),
    (degradations.darken, "curve", 1.0, 2.5),
    (degradations.darken, "noise", 0.0, 0.1),
]


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def image():
    """Smooth shapes with edges, in colour, odd-sized, nowhere black or white."""
    rows, columns = np.mgrid[0:41, 0:56].astype(np.float32)
    planes = [
        np.sin(rows / 7) * np.cos(columns / 5),
        np.sign(np.sin(rows / 9 + columns / 6)),
        columns / 28 - 1,
    ]
    return (0.5 + 0.35 * np.stack(planes, axis=-1)).astype(np.float32)


@pytest.mark.parametrize("degrade", ALL, ids=degradations.__all__)
def test_common_promises(degrade, image):
    before = image.copy()
    image.flags.writeable = False
    degraded = degrade(image, generator(3))
    assert degraded.dtype == np.float32 and degraded.shape == image.shape
    assert degraded.min() >= 0 and degraded.max() <= 1
    assert np.array_equal(image, before)
    assert not np.array_equal(degraded, image)
    assert np.array_equal(degraded, degrade(image, generator(3)))
    assert not np.array_equal(degraded, degrade(image, generator(4)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 2), (2, 300)])
@pytest.mark.parametrize("degrade", ALL, ids=degradations.__all__)
def test_any_size(degrade, shape):
    degraded = degrade(np.full((*shape, 3), 0.5, np.float32), generator(1))
    assert degraded.shape == (*shape, 3) and np.isfinite(degraded).all()


@pytest.mark.parametrize("degrade", ALL, ids=degradations.__all__)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_in_range(degrade, value):
    degraded = degrade(np.full((24, 20, 3), value, np.float32), generator(2))
    assert degraded.dtype == np.float32 and degraded.min() >= 0 and degraded.max() <= 1


@pytest.mark.parametrize(
    ("degrade", "parameter", "weak", "strong"),
    SEVERITIES,
    ids=[f"{f.__name__}-{p}" for f, p, _, _ in SEVERITIES],
)
def test_every_severity_parameter_has_an_effect(degrade, parameter, weak, strong, image):
    first, second = (degrade(image, generator(5), **{parameter: value}) for value in (weak, strong))
    assert np.abs(first - second).mean() > 1e-4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), "float32"),
        (np.zeros((4, 4), np.float32), "three channels"),
        (np.zeros((0, 4, 3), np.float32), "shape"),
        (np.full((4, 4, 3), 255, np.float32), "255"),
        (np.full((4, 4, 3), np.nan, np.float32), "nan"),
    ],
)
def test_unfit_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        degradations.add_haze(image, generator())


def test_haze_is_the_scattering_formula(image):
    depth = np.linspace(0, 3, image.shape[0] * image.shape[1]).reshape(image.shape[:2])
    airlight = (0.7, 0.8, 0.9)
    hazy = degradations.add_haze(image, generator(), density=0.8, airlight=airlight, depth=depth)
    transmission = np.exp(-0.8 * depth)[..., None]
    expected = image * transmission + np.array(airlight) * (1 - transmission)
    np.testing.assert_allclose(hazy, expected, atol=1e-6)
    with pytest.raises(ValueError, match="depth has shape"):
        degradations.add_haze(image, generator(), depth=depth[1:])


def test_synthetic_depth_is_far_above_and_near_below():
    depth = np.mean([synthetic_depth(48, 64, generator(seed)) for seed in range(8)], axis=0)
    assert depth.min() >= 0 and depth.max() <= 1
    assert depth[:6].mean() > depth[-6:].mean() + 0.2


def test_gaussian_noise_has_the_stated_deviation_and_no_quantisation():
    grey = np.full((200, 200, 3), 0.5, np.float32)
    noise = degradations.add_gaussian_noise(grey, generator(), sigma=25) - grey
    assert noise.std() == pytest.approx(25 / 255, rel=0.01)
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    assert len(np.unique(noise)) > 10_000
    drawn = {
        round(255 * float((degradations.add_gaussian_noise(grey, generator(seed)) - grey).std())) for seed in range(12)
    }
    assert drawn <= {15, 25, 49, 50} and len(drawn) >= 3


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0, 2.5, 7.2])
def test_disk_kernel(radius):
    kernel = blur.disk_kernel(radius)
    assert kernel.dtype == np.float32 and kernel.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(kernel, kernel.T)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1])
    if radius >= 2:
        assert 1 / kernel.max() == pytest.approx(np.pi * radius**2, rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_motion_kernels_sum_to_one_and_are_centred(seed):
    path = blur.shake_path(12.0, 2.0, generator(seed), angle=30)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert steps.sum() == pytest.approx(12, rel=0.15)
    kernel = blur.trajectory_kernel(path)
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-5)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum(axis=0) @ offset == pytest.approx(0, abs=1e-4)
    assert kernel.sum(axis=1) @ offset == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("angle", "axis"), [(0, 1), (90, 0)])
def test_straight_motion_smears_along_its_direction_only(angle, axis):
    """A bright bar across the motion widens to the path length; one along it keeps its profile."""
    across = np.zeros((41, 41, 3), np.float32)
    np.moveaxis(across, axis, 0)[20] = 1
    along = np.ascontiguousarray(across.transpose(1, 0, 2))
    settings = {"length": 10 / 41, "angle": angle, "bend": 0.0, "gamma": 1.0}
    smeared = degradations.motion_blur(across, generator(), **settings)
    assert (np.moveaxis(smeared, axis, 0)[:, 20, 0] > 0.03).sum() in (10, 11, 12)
    np.testing.assert_allclose(degradations.motion_blur(along, generator(), **settings), along, atol=1e-5)


def test_straight_diagonal_rises_to_the_right():
    kernel = blur.trajectory_kernel(blur.straight_path(9.0, 45.0))
    assert kernel[0, -1] + kernel[1, -2] > 0.05 > kernel[0, 0] + kernel[-1, -1]


def test_blur_preserves_constants_and_mean(image):
    flat = np.full((30, 33, 3), 0.37, np.float32)
    np.testing.assert_allclose(degradations.defocus_blur(flat, generator(), radius=0.1), flat, atol=1e-5)
    np.testing.assert_allclose(degradations.motion_blur(flat, generator(), length=0.3), flat, atol=1e-5)
    soft = degradations.defocus_blur(image, generator(), radius=0.1, gamma=1.0)
    assert soft.mean() == pytest.approx(image.mean(), abs=1e-5)
    assert soft.var() < image.var()


def test_convolve_agrees_with_the_definition(image):
    kernel = generator().random((5, 3), dtype=np.float32)
    padded = np.pad(image, ((2, 2), (1, 1), (0, 0)), mode="symmetric")
    height, width, _ = image.shape
    expected = sum(kernel[4 - i, 2 - j] * padded[i : i + height, j : j + width] for i in range(5) for j in range(3))
    np.testing.assert_allclose(blur.convolve(image, kernel), expected, atol=1e-5)


def test_blur_averages_light_and_not_display_values():
    step = np.zeros((32, 32, 3), np.float32)
    step[:, 16:] = 1
    middle = degradations.defocus_blur(step, generator(), radius=0.2)[16, 15:17].mean()
    assert middle == pytest.approx(0.5 ** (1 / 2.2), abs=0.03)


def test_lengths_follow_the_image(image):
    """A image of twice the size gets twice the blur: reduced again, the two agree."""
    large = image[:40, :56].repeat(4, axis=0).repeat(4, axis=1)
    reduce = lambda array, by: array.reshape(160 // by, by, -1, by, 3).mean(axis=(1, 3))
    settings = {"radius": 0.08, "gamma": 1.0}
    from_large = reduce(degradations.defocus_blur(large, generator(), **settings), 4)
    from_small = degradations.defocus_blur(np.ascontiguousarray(reduce(large, 2)), generator(), **settings).reshape(
        40, 2, -1, 2, 3
    )
    assert np.abs(from_large - from_small.mean(axis=(1, 3))).mean() < 0.01


def test_streaks_and_flakes_have_the_stated_form():
    upright = rain.streak_kernel(21, 0, 2)
    assert upright.max() == pytest.approx(1)
    assert (upright.max(axis=1) > 0.5).sum() > 3 * (upright.max(axis=0) > 0.5).sum()
    leaning = rain.streak_kernel(21, 30, 2)
    rows, columns = np.nonzero(leaning > 0.5)
    assert np.corrcoef(rows, columns)[0, 1] < -0.5  # the upper end leans to the right
    still, falling = snow.flake_kernel(3, 0, -90), snow.flake_kernel(3, 9, -90)
    assert still.max() == falling.max() == pytest.approx(1)
    heights = [(kernel > 0.3).any(axis=1).sum() for kernel in (still, falling)]
    assert heights[1] > heights[0] + 3


@pytest.mark.parametrize("degrade", [degradations.add_rain, degradations.add_snow])
def test_weather_brightens_and_covers_more_with_density(degrade):
    dark = np.full((64, 64, 3), 0.1, np.float32)
    means = [degrade(dark, generator(1), density=density).mean() for density in (0.2, 1.0, 3.0)]
    assert 0.1 <= means[0] < means[1] < means[2]
    assert degrade(dark, generator(1), density=1.0).min() >= 0.1 - 1e-4


def test_no_weather_is_no_change(image):
    clear = [
        degradations.add_rain(image, generator(), density=0),
        degradations.add_snow(image, generator(), density=0, veil=0),
        degradations.add_haze(image, generator(), density=0),
        degradations.add_raindrops(image, generator(), coverage=0),
        degradations.motion_blur(image, generator(), length=0),
        degradations.darken(image, generator(), exposure=1, curve=1, noise=0),
    ]
    for unchanged in clear:
        np.testing.assert_allclose(unchanged, image, atol=1e-5)


def test_photon_noise_variance_grows_with_light():
    levels = np.broadcast_to(np.float32([0.0, 0.25, 1.0]), (300, 300, 3))
    variance = light.photon_noise(levels, 0.01, 0.002, generator()).var(axis=(0, 1))
    np.testing.assert_allclose(variance, [0.002, 0.0045, 0.012], rtol=0.03)


def test_gamma_and_back(image):
    np.testing.assert_allclose(light.to_display(light.to_light(image)), image, atol=1e-5)
    assert light.to_display(np.float32([-1, 2])).tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (3, 5), (8, 7)])
def test_mosaic_has_unit_gain(shape):
    constant = np.full((*shape, 3), 0.3, np.float32)
    np.testing.assert_allclose(sensor_noise.mosaic_noise(constant), constant, atol=1e-6)


def test_sensor_noise_is_correlated_and_stronger_in_red():
    grey = np.full((128, 128, 3), 0.5, np.float32)
    settings = {"iso": 6400, "red_gain": 2.4, "blue_gain": 1.5, "quality": 98}
    noise = degradations.add_sensor_noise(grey, generator(), **settings) - grey
    red, green, blue = noise.std(axis=(0, 1))
    assert red > blue > green
    plane = noise[..., 0]
    assert np.corrcoef(plane[:, :-1].ravel(), plane[:, 1:].ravel())[0, 1] > 0.3


def test_raindrops_change_covered_pixels_only(image):
    height, width, _ = image.shape
    drops = raindrop.scatter_drops(height, width, generator(7), coverage=0.15, radius=4.0)
    wet = drops.mask > 0
    assert 0.05 < wet.mean() < 0.5
    seen = raindrop.refract(image, drops)
    assert np.array_equal(seen[~wet], image[~wet])
    assert (np.abs(seen - image).max(axis=-1)[drops.mask > 0.9] > 0.01).mean() > 0.5


def test_a_drop_turns_the_scene_upside_down():
    scene = np.zeros((60, 60, 3), np.float32)
    scene[:30] = 1  # sky above, ground below
    drops = raindrop.scatter_drops(60, 60, generator(0), coverage=1e-6, radius=9.0)
    rows, columns = np.nonzero(drops.mask > 0.9)
    upper, lower = rows < np.median(rows), rows > np.median(rows)
    assert drops.row[rows[upper], columns[upper]].mean() > drops.row[rows[lower], columns[lower]].mean() + 5


def test_low_light_is_monotone_and_follows_its_formula():
    ramp = np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[None, :, None], 3, axis=2)
    dark = degradations.darken(ramp, generator(), exposure=0.3, curve=1.8, noise=0)
    np.testing.assert_allclose(dark, 0.3 * ramp**1.8, atol=1e-6)
    assert (np.diff(dark[0, :, 0]) > 0).all() and (dark <= ramp).all()


def test_smooth_noise_spans_the_unit_interval_smoothly():
    field = fields.smooth_noise(50, 80, 4, generator())
    assert field.shape == (50, 80) and field.dtype == np.float32
    assert field.min() == 0 and field.max() == pytest.approx(1)
    assert np.abs(np.diff(field, axis=0)).max() < 0.2
    assert fields.smooth_noise(1, 1, 4, generator()).tolist() == [[0.5]]
