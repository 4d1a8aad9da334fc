"""Haze, snow, rain and drops on glass."""

from __future__ import annotations

from data_pipelines.datasets.layouts.layout import INPUT_TARGET, Layout, same_name
from data_pipelines.datasets.splits import Rule, Split

_RESIDE = "https://sites.google.com/view/reside-dehaze-datasets"
_YANG = "https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html"
_SCENE = "{id:[^/_]+}"
_NUMBER = r"{n:\d+}"
_OTS_VALUES = {"a": (0.8, 0.85, 0.9, 0.95, 1), "b": (0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2)}
# Scattering and airlight of its veil.
_OUTDOOR_VALUES = {"s": ("80", "85", "90", "95", "100"), "a": ("04", "05", "06")}
_OUTDOOR_TEST = r"im_03(?:0[1-9]|[1-4]\d|50)(?:_|\.)"


def _hazy(top: str, name: str) -> tuple[Rule, ...]:
    folders = (("hazy", "gt"), ("hazy", "clear"), ("input", "target"), ("input", "gt"), ("haze", "clear"))
    return tuple(Rule(f"{top}{lq}/{name}", f"{top}{gt}/{_SCENE}") for lq, gt in folders)


def _ots() -> tuple[Rule, ...]:
    name = _SCENE + "_{a:[^/_]+}_{b:[^/_]+}"
    hazy = (r"synthetic/part\d", r"haze/(?:OTS/)?part\d", r"hazy/part\d", r"part\d", "hazy", "haze(?:/OTS)?")
    clear = ("original", "clear/clear_images", "clear", "gt")
    return tuple(Rule(f"{{part:{lq}}}/{name}", f"{gt}/{_SCENE}") for lq in hazy for gt in clear)


def _rain100(letter: str, weight: str, train: int, confirmed: bool) -> Layout:
    def rules(top: str) -> tuple[Rule, ...]:
        rain, norain = f"rain-{_NUMBER}", f"norain-{_NUMBER}"
        pairs = (
            (f"rainy/{rain}", norain),
            (f"rainy/{rain}", f"norain/{norain}"),
            (f"rain/X2/{norain}x2", norain),
            (f"rain/X2/{norain}x2", f"norain/{norain}"),
            (f"rain/{norain}x2", f"norain/{norain}"),
            (f"rain/{rain}", f"norain/{norain}"),
            (f"input/{rain}", f"target/{norain}"),
            ("input/{word:[^/]*?}" + _NUMBER, "target/{word:[^/]*?}" + _NUMBER),
        )
        return tuple(Rule(top + lq, top + gt) for lq, gt in pairs)

    published = Rule(f"rainy/rain-{_NUMBER}", f"gt/norain-{_NUMBER}")
    in_train = f"{{top:rain_data_train_{weight}|train|Train100{letter}|RainTrain{letter}}}/"
    in_test = f"{{top:rain_data_test_{weight}|test|Rain100{letter}}}/"
    splits = (
        Split("train", train, (*rules(in_train), published), 0, {"n": range(1, train + 1)}, confirmed),
        Split("test", 100, (*rules(in_test), *rules("./")), 0, {"n": range(1, 101)}, confirmed),
    )
    title = f"Rain100{letter}: {weight.lower()} rain"
    return Layout(f"rain100{letter.lower()}", title, "derain", splits, "~0.5 GB", home=_YANG)


def _rain200(letter: str, weight: str) -> Layout:
    def rules(split: str) -> tuple[Rule, ...]:
        names = (("{name}x2", "{name}"), ("rain-{n}", "norain-{n}"), ("{name}", "{name}"))
        folders = (("rain", "norain"), ("rain/X2", "norain"), ("input", "target"))
        return tuple(Rule(f"{split}/{a}/{lq}", f"{split}/{b}/{gt}") for a, b in folders for lq, gt in names)

    splits = tuple(Split(s, count, rules(s), confirmed=False) for s, count in (("train", 1800), ("test", 200)))
    return Layout(
        f"rain200{letter.lower()}", f"Rain200{letter}: {weight} rain", "derain", splits, "~0.6 GB", home=_YANG
    )


def _rain1400(name: str, folder: str, count: int) -> Split:
    rules = (
        Rule(f"{folder}/rainy_image/{_SCENE}_{{k}}", f"{folder}/ground_truth/{_SCENE}"),
        Rule(f"{name}/input/{_SCENE}_{{k}}", f"{name}/target/{_SCENE}"),
    )
    return Split(name, count, rules, count // 14, {"k": range(1, 15)}, confirmed=False)


def _outdoor_rain(name: str, count: int, tops: tuple[str, ...], **more) -> Split:
    scene, skip = r"{id:im_\d{4}}", more.pop("skip", "")
    name_of = scene + r"_s{s:\d+}_a{a:\d+}"
    rules = tuple(Rule(f"{top}{lq}/{name_of}", f"{top}gt/{scene}", skip) for top in tops for lq in ("input", "in"))
    return Split(name, count, rules, expected=_OUTDOOR_VALUES, **more)


def _raindrop(name: str, count: int, confirmed: bool = False) -> Split:
    folders = (("data", "gt"), *INPUT_TARGET)
    rules = tuple(Rule(f"{name}/{lq}/{{n}}_rain", f"{name}/{gt}/{{n}}_clean") for lq, gt in folders)
    return Split(name, count, rules, confirmed=confirmed)


def _snow_test(size: str, count: int) -> Split:
    rules = same_name(f"Snow100K-{size}/", ("synthetic", "gt"), *INPUT_TARGET)
    return Split(f"test_{size.lower()}", count, rules, confirmed=False)


_ITS_NAME = r"{id:\d+}_{k:\d+}_{a}"
_SOTS_NAME = _SCENE + "_{k}"

WEATHER = (
    Layout(
        "reside_its",
        "RESIDE ITS: indoor haze, training",
        "dehaze",
        (Split("train", 13990, _hazy("", _ITS_NAME), 1399, {"k": range(1, 11)}, confirmed=False),),
        "~5 GB",
        home=_RESIDE,
        aliases=("its",),
    ),
    Layout(
        "reside_ots",
        "RESIDE OTS (beta): outdoor haze, training",
        "dehaze",
        (Split("train", 72135, _ots(), 2061, _OTS_VALUES),),
        "~10 GB",
        home=_RESIDE,
        aliases=("ots",),
    ),
    Layout(
        "sots_indoor",
        "RESIDE SOTS: indoor haze, test",
        "dehaze",
        (
            Split(
                "test",
                500,
                tuple(r for top in ("indoor/", "nyuhaze500/", "./") for r in _hazy(top, _SOTS_NAME)),
                50,
                {"k": range(1, 11)},
                confirmed=False,
            ),
        ),
        "~0.4 GB",
        home=_RESIDE,
    ),
    Layout(
        "sots_outdoor",
        "RESIDE SOTS: outdoor haze, test",
        "dehaze",
        (Split("test", 500, tuple(r for top in ("outdoor/", "./") for r in _hazy(top, _SOTS_NAME)), 492),),
        "~0.1 GB",
        home=_RESIDE,
        aliases=("sots",),
    ),
    Layout(
        "snow100k",
        "Snow100K: synthetic snow, tests by size of flakes",
        "desnow",
        (
            Split(
                "train",
                50000,
                same_name("all/", ("synthetic", "gt")) + same_name("train/", ("synthetic", "gt"), *INPUT_TARGET),
            ),
            _snow_test("S", 16611),
            _snow_test("M", 16588),
            _snow_test("L", 16801),
        ),
        "~17 GB",
        home="https://sites.google.com/view/yunfuliu/desnownet",
    ),
    Layout(
        "rain1400",
        "Rain1400 (DDN): 14 kinds of rain on every image",
        "derain",
        (_rain1400("train", "training", 12600), _rain1400("test", "testing", 1400)),
        "~2 GB",
        home="https://xueyangfu.github.io/projects/cvpr2017.html",
        aliases=("ddn", "rain14000"),
    ),
    _rain100("L", "Light", 200, True),
    _rain100("H", "Heavy", 1800, False),
    _rain200("L", "light"),
    _rain200("H", "heavy"),
    Layout(
        "outdoor_rain",
        "Outdoor-Rain: heavy rain and its veil",
        "derain",
        (
            _outdoor_rain("train", 8250, ("train/", "./"), skip=_OUTDOOR_TEST),
            _outdoor_rain("test1", 750, ("test1/", "test/"), confirmed=False),
        ),
        "~9 GB",
        home="https://github.com/liruoteng/HeavyRainRemoval",
    ),
    Layout(
        "raindrop",
        "RainDrop: drops on glass",
        "deraindrop",
        (_raindrop("train", 861, True), _raindrop("test_a", 58), _raindrop("test_b", 249)),
        "~1 GB",
        home="https://github.com/rui1996/DeRaindrop",
    ),
)
