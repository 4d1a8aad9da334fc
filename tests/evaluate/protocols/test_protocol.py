import numpy as np
import pytest

from data_pipelines.sources.folders import clean_stem
from mperceiver_jax.evaluate.metrics.full_reference import psnr
from mperceiver_jax.evaluate.protocols.preprocessing import Preprocessing, in_colour, measured, prepared, prepared_size
from mperceiver_jax.evaluate.protocols.protocol import describe, load_protocol, protocol_names

NAMES = [
    "airnet-5task",
    "all-weather",
    "cdd11",
    "folder",
    "mioir-indis",
    "mioir-outdis",
    "mperceiver-9task",
    "promptir-3task",
]


def test_every_protocol_is_there_and_describes_itself():
    assert protocol_names() == NAMES
    for name in NAMES:
        protocol = load_protocol(name)
        text = describe(protocol)
        assert all(trap in text for trap in protocol.traps) and len(protocol.traps) >= 3
        assert all(f"set {one.name} " in text for one in protocol.sets)
        assert all(
            key in (protocol.sources or {}) for p in protocol.peers for key in p.source.split(", ") if len(key) == 1
        )


def test_columns_and_averages():
    count = {name: len(load_protocol(name).sets) for name in NAMES}
    assert [count[name] for name in NAMES] == [5, 3, 11, 1, 7, 12, 9, 5]
    assert load_protocol("promptir-3task").columns[-1] == "average"
    assert load_protocol("folder").columns == ["folder"]
    averages = load_protocol("mioir-outdis").averages
    assert {name: len(members) for name, members in averages.items()} == {
        "average of out-of-distribution": 7,
        "average of unknown": 5,
    }


@pytest.mark.parametrize("name", NAMES)
def test_published_averages_are_those_of_their_columns(name):
    # What was mistyped would stand out; some sources are themselves off by this much.
    protocol = load_protocol(name)
    for peer in protocol.peers:
        for metric, figures in peer.figures.items():
            for average, members in protocol.averages.items():
                if average in figures and all(member in figures for member in members):
                    mean = np.mean([figures[member] for member in members])
                    assert figures[average] == pytest.approx(mean, abs={"psnr": 0.05, "ssim": 0.011}[metric]), peer.name


@pytest.mark.parametrize(
    "name, set_name, degraded, clean",
    [
        ("promptir-3task", "SOTS-outdoor", "0001_0.8_0.2", "0001"),
        ("promptir-3task", "Rain100L", "rain-7", "norain-7"),
        ("all-weather", "Outdoor-Rain", "im_0301_s80_a04", "im_0301"),
        ("all-weather", "RainDrop-A", "12_rain", "12_clean"),
        ("mperceiver-9task", "Rain1400", "901_14", "901"),
    ],
)
def test_pairing_rules_are_the_published_ones(name, set_name, degraded, clean):
    one = next(one for one in load_protocol(name).sets if one.name == set_name)
    assert clean in [clean_stem(degraded, rule) for rule in one.pairing]


def test_protocols_of_the_user(tmp_path):
    path = tmp_path / "mine.toml"
    head = 'title = "Mine"\nabout = "x"\ntraps = []\n[preprocessing]\nborder = 2\n'
    head += '[[sets]]\nname = "a"\ntask = "rain"\ngt = "gt"\n'
    path.write_text(head)
    protocol = load_protocol(str(path))
    assert (protocol.name, protocol.preprocessing.border, protocol.sets[0].gt) == ("mine", 2, ("gt",))
    for addition, message in [
        ("colours = 3\n", "unknown entries .'colours'"),
        ('[[peers]]\nname = "p"\nsource = "R"\npsnr = [1, 2]\n', "2 values for 1 columns"),
        ('[[peers]]\nname = "p"\nsource = "R"\npsnr = { b = 1 }\n', "no columns .'b'"),
        ("[[sets]\n", "mine"),
    ]:
        path.write_text(head + addition)
        with pytest.raises(ValueError, match=message):
            load_protocol(str(path))
    for part, wrong, message in [
        ("border = 2", 'colour = "yuv"', "colour of Preprocessing is one of rgb, y, not 'yuv'"),
        ("border = 2", 'border = "2"', "border of Preprocessing must be int"),
        ("border = 2", "border = -1", "border must be at least 0"),
        ('name = "a"', "name = 3", "name of SetOfPairs must be str"),
        ("[[sets]]", "[sets]", "no table of SetOfPairs"),
        ("[preprocessing]", "[preprocessings]", "'preprocessing' is missing"),
    ]:
        path.write_text(head.replace(part, wrong))
        with pytest.raises(ValueError, match=message):
            load_protocol(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a text file"):
        load_protocol(str(path))
    with pytest.raises(ValueError, match="promptir-3task"):
        load_protocol("promptir")
    with pytest.raises(FileNotFoundError, match="none"):
        load_protocol(str(tmp_path / "none.toml"))


def test_levels_and_border():
    pixels = np.full((6, 8, 3), 0.5, np.float32)
    pixels[0] = 7  # in the border, and out of range
    exact = measured(pixels, Preprocessing(levels="float"))
    assert exact.shape == (6, 8, 3) and exact.max() == 1 and exact.dtype == np.float64
    assert (measured(pixels, Preprocessing(levels="round", border=1)) == 128 / 255).all()
    assert (measured(pixels, Preprocessing(levels="truncate", border=1)) == 127 / 255).all()
    luma = in_colour(np.ones((2, 2, 3)), Preprocessing(colour="y"))
    assert luma.shape == (2, 2, 1) and luma == pytest.approx(235 / 255)
    # Half a grey level of truncation is seen.
    truth = np.full((6, 8, 3), 128 / 255)
    assert psnr(measured(pixels, Preprocessing(levels="truncate", border=1)), truth[1:-1, 1:-1]) == pytest.approx(
        48.13, abs=0.01
    )


def test_crops_and_sizes():
    pixels = np.arange(35 * 50 * 3, dtype=np.uint16).reshape(35, 50, 3)
    sixteen = load_protocol("promptir-3task").preprocessing
    # A rest of 3 rows and 2 columns: one row off the top, one column off the left.
    np.testing.assert_array_equal(prepared(pixels, sixteen), pixels[1:33, 1:49])
    weather = load_protocol("all-weather").preprocessing
    assert prepared_size(640, 480, weather) == (640, 480)
    assert prepared_size(641, 480, weather) == (656, 480)
    assert prepared_size(1000, 2001, weather) == (512, 1024)
    assert prepared(np.zeros((20, 2000, 3), np.uint8), weather).shape == (16, 1024, 3)
    with pytest.raises(ValueError, match="has 16"):
        prepared(np.zeros((20, 2000, 3), np.uint16), weather)
    with pytest.raises(ValueError, match="multiples"):
        prepared(np.zeros((12, 40, 3), np.uint8), sixteen)
