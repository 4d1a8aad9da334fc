"""What cameras do: motion and defocus blur, sensor noise, low light, screens and water in front of them."""

from __future__ import annotations

from data_pipelines.datasets.layouts.layout import INPUT_TARGET, Layout, same_name
from data_pipelines.datasets.splits import Rule, Split

_LOW_HIGH = (("low", "high"), ("input", "target"))
_LOL_V2 = "https://github.com/flyywh/CVPR-2020-Semi-Low-Light"
_SINGLE, _DOUBLE = ("low", "haze", "rain", "snow"), ("low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow")
_CDD = (*_SINGLE, *_DOUBLE, "low_haze_rain", "low_haze_snow")


def _gopro(name: str, count: int) -> Split:
    scenes = Rule(f"{name}/{{scene}}/blur/{{n}}", f"{name}/{{scene}}/sharp/{{n}}")
    return Split(name, count, (scenes, *same_name(f"{name}/", ("blur", "sharp"), ("input", "target"))))


def _realblur(letter: str, kind: str) -> Layout:
    # Both sets come in one folder, with their lists above the images.
    scene, other = "{scene:scene[^/]*}", f"RealBlur-[^{letter}]"
    tops = (f"{{top:RealBlur-{letter}[^/]*}}/", "")
    rules = tuple(Rule(f"{top}{scene}/blur/blur_{{k}}", f"{top}{scene}/gt/gt_{{k}}", other) for top in tops)
    splits = tuple(
        Split(name, count, rules, confirmed=False, listed=f"RealBlur_{letter}_{name}_list.txt")
        for name, count in (("train", 3758), ("test", 980))
    )
    title, home = f"RealBlur-{letter}: camera shake, {kind}", "http://cg.postech.ac.kr/research/realblur/"
    return Layout(f"realblur_{letter.lower()}", title, "deblur_motion", splits, "~12 GB", home=home)


def _dpdd(name: str, count: int) -> Split:
    folders = ((f"{name}_c/source", f"{name}_c/target"), (f"{name}/inputC", f"{name}/target"))
    by_order = tuple(Rule(f"{lq}/{{source}}", f"{gt}/{{target}}", in_order=True) for lq, gt in folders)
    return Split(name, count, same_name("", *folders) + by_order, confirmed=False)


def _lol_v2(kind: str, top: str, train: int, prefixes: tuple[str, str]) -> Layout:
    low, normal = prefixes
    splits = tuple(
        Split(
            name,
            count,
            tuple(Rule(f"{t}{name}/low/{low}{{n}}", f"{t}{name}/normal/{normal}{{n}}") for t in (top, "")),
            confirmed=False,
        )
        for name, count in (("train", train), ("test", 100))
    )
    return Layout(f"lol_v2_{kind}", f"LOL v2, {kind}", "lowlight", splits, "~0.5 GB", home=_LOL_V2)


def _under_display(name: str, written: str, kind: str) -> Layout:
    def rules(split: str) -> tuple[Rule, ...]:
        sides = (("LQ", "HQ"), ("LQ", "GT"), *INPUT_TARGET)
        tops = (f"{split}/{name}/", f"{name}/{split}/", f"{written}/{split}/", f"{split}/")
        return tuple(rule for top in tops for rule in same_name(top, *sides))

    def blocks(split: str) -> Rule:
        return Rule(f"{name}_{split}_display.mat", f"{name}_{split}_gt.mat", blocks=True)

    splits = (
        Split("train", 240, (*rules("train"), *same_name(f"./{name}/", ("LQ", "HQ"))), confirmed=False),
        Split("val", 30, (*rules("val"), blocks("val")), confirmed=False),
        Split("test", 30, (*rules("test"), blocks("test")), confirmed=False),
    )
    title, home = f"{written}: seen through a {kind} display", "https://yzhouas.github.io/projects/UDC/udc.html"
    return Layout(name, title, "underdisplay", splits, "~2 GB", home=home)


def _cdd11(name: str, count: int) -> Split:
    kind = f"{{kind:{'|'.join(_CDD)}}}"
    rules = tuple(Rule(f"{top}/{kind}/{{n}}", f"{top}/clear/{{n}}") for top in (name, f"CDD-11_{name}"))
    return Split(name, 11 * count, rules, count, {"kind": _CDD}, confirmed=False)


CAMERAS = (
    Layout(
        "gopro",
        "GoPro: motion blur by averaging frames",
        "deblur_motion",
        (_gopro("train", 2103), _gopro("test", 1111)),
        "~9 GB",
        "CC BY 4.0",
        "https://seungjunnah.github.io/Datasets/gopro",
    ),
    _realblur("J", "camera JPEGs"),
    _realblur("R", "developed from raw"),
    Layout(
        "dpdd",
        "DPDD: defocus blur (centre views)",
        "deblur_defocus",
        (_dpdd("train", 350), _dpdd("val", 74), _dpdd("test", 76)),
        "~7 GB",
        home="https://www.eecs.yorku.ca/~abuolaim/eccv_2020_dp_defocus_deblurring/",
    ),
    Layout(
        "sidd",
        "SIDD: noise of phone cameras (medium sRGB pairs; blocks for val and benchmark)",
        "denoise_real",
        (
            Split(
                "train",
                320,
                tuple(
                    Rule(top + r"{scene}/{id:\d+}_NOISY_SRGB_{k}", top + r"{scene}/{id:\d+}_GT_SRGB_{k}")
                    for top in ("Data/", "")
                ),
                confirmed=False,
            ),
            Split(
                "val",
                1280,
                (Rule("ValidationNoisyBlocksSrgb.mat", "ValidationGtBlocksSrgb.mat", blocks=True),),
                confirmed=False,
            ),
            Split("benchmark", 1280, (Rule("BenchmarkNoisyBlocksSrgb.mat", "", blocks=True),), confirmed=False),
        ),
        "~12 GB",
        "see home page",
        "https://abdokamel.github.io/sidd/",
    ),
    Layout(
        "lol_v1",
        "LOL: short against long exposures",
        "lowlight",
        (
            Split(
                "train",
                485,
                same_name("our485/", *_LOW_HIGH) + same_name("train/", *_LOW_HIGH) + same_name("./", ("low", "high")),
            ),
            Split("test", 15, same_name("eval15/", *_LOW_HIGH) + same_name("test/", *_LOW_HIGH)),
        ),
        "~0.3 GB",
        home="https://daooshee.github.io/BMVC2018website/",
        aliases=("lol",),
    ),
    _lol_v2("real", "Real_captured/", 689, ("low", "normal")),
    _lol_v2("synthetic", "Synthetic/", 900, ("", "")),
    Layout(
        "cdd11",
        "CDD-11: low light, haze, rain, snow and their combinations",
        "composite",
        (_cdd11("train", 1183), _cdd11("test", 200)),
        "~20 GB",
        "see home page",
        "https://github.com/gy65896/OneRestore",
    ),
    _under_display("toled", "T-OLED", "transparent"),
    _under_display("poled", "P-OLED", "phone"),
    Layout(
        "uieb",
        "UIEB: under water",
        "underwater",
        (Split("train", 890, same_name("", ("raw-890", "reference-890"), ("raw", "reference")), confirmed=False),),
        "~1.5 GB",
        "academic use only",
        "https://li-chongyi.github.io/proj_benchmark.html",
    ),
)
