"""The published data sets, as data: where their images lie, which belong together, how many there are.

Counts that are not `confirmed` are what is commonly quoted; a difference from them is reported, but not
refused. Sizes are rough, and licences are what the home pages said: read them there before use.
"""

from __future__ import annotations

from data_pipelines.datasets.layouts.cameras import CAMERAS
from data_pipelines.datasets.layouts.layout import Layout
from data_pipelines.datasets.layouts.photographs import PHOTOGRAPHS
from data_pipelines.datasets.layouts.weather import WEATHER

LAYOUTS: tuple[Layout, ...] = WEATHER + CAMERAS + PHOTOGRAPHS

__all__ = ["LAYOUTS", "Layout", "layout_named"]


def layout_named(name: str) -> Layout:
    """The layout of that name or alias; ValueError that lists the names there are."""
    plain = lambda text: "".join(filter(str.isalnum, text.lower()))
    for layout in LAYOUTS:
        if plain(name) in map(plain, (layout.name, *layout.aliases)):
            return layout
    names = ", ".join(layout.name for layout in LAYOUTS)
    raise ValueError(f"no data set is known as {name!r}; there are {names} ('prepare list' describes them)")
