"""Clean images, and the user's own folders."""

from __future__ import annotations

from data_pipelines.datasets.layouts.layout import Layout, clean_only
from data_pipelines.datasets.splits import Rule, Split

_BSD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds/"


def _one_folder(name: str, title: str, count: int, *patterns: str, size: str, home: str, **more) -> Layout:
    split = clean_only(more.pop("split", "test"), count, *patterns, **more.pop("rules", {}))
    return Layout(name, title, "clean", (split,), size, home=home, **more)


PHOTOGRAPHS = (
    _one_folder(
        "bsd400",
        "BSD400: denoising, training",
        400,
        "{name}",
        size="~20 MB",
        home=_BSD,
        split="train",
        licence="non-commercial research and education",
    ),
    _one_folder(
        "cbsd68",
        "CBSD68, BSD68 in colour: denoising, test",
        68,
        "original_png/{name}",
        "original/{name}",
        "{name}",
        size="~10 MB",
        home=_BSD,
        licence="non-commercial research and education",
        aliases=("bsd68",),
    ),
    _one_folder(
        "wed",
        "WED, Waterloo exploration database: denoising, training",
        4744,
        r"pristine_images/{n:\d{5}}",
        r"{n:\d{5}}",
        size="~3 GB",
        home="https://kedema.org/project/exploration/index.html",
        split="train",
        rules={"expected": {"n": range(1, 4745)}},
        licence="research, with its copyright notice",
    ),
    _one_folder(
        "urban100",
        "Urban100: denoising and super-resolution, test",
        100,
        r"image_SRF_4/img_{n:\d{3}}_SRF_4_HR",
        r"img_{n:\d{3}}",
        r"img_{n:\d{3}}_SRF_4_HR",
        "{name}",
        size="~0.15 GB",
        home="https://github.com/jbhuang0604/SelfExSR",
        # Next to every image are its small version and the outputs of several methods for it.
        rules={"skip": r"_SRF_\d_(?!HR)"},
    ),
    _one_folder(
        "kodak24",
        "Kodak24, the Kodak photo CD: test",
        24,
        r"kodim{n:\d\d}",
        r"{n:\d+}",
        size="~15 MB",
        home="http://r0k.us/graphics/kodak/",
        rules={"expected": {"n": range(1, 25)}, "confirmed": False},
        licence="free use",
        aliases=("kodak",),
    ),
    Layout(
        "div2k",
        "DIV2K: 2K photographs",
        "clean",
        (
            clean_only(
                "train",
                800,
                r"DIV2K_train_HR/{n:\d{4}}",
                confirmed=False,
                expected={"n": range(1, 801)},
            ),
            clean_only(
                "valid",
                100,
                r"DIV2K_valid_HR/{n:\d{4}}",
                confirmed=False,
                expected={"n": range(801, 901)},
            ),
        ),
        "~4 GB",
        "academic research only",
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    ),
    _one_folder(
        "flickr2k",
        "Flickr2K: 2K photographs",
        2650,
        r"Flickr2K_HR/{n:\d{6}}",
        r"{n:\d{6}}",
        size="~11 GB",
        home="https://github.com/limbee/NTIRE2017",
        split="train",
        rules={"expected": {"n": range(1, 2651)}, "confirmed": False},
    ),
    # The user's own: the folders are filled in from the command line.
    Layout("pairs", "any two folders of pairs", "", (Split("train", 0, (Rule("lq/{name:.+}", "gt/{name:.+}"),)),)),
    Layout("clean", "any folder of clean images", "clean", (clean_only("train", 0, "./{name:.+}"),)),
)
