"""Which images a protocol means, and what is known of those that were measured."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.datasets.records import ImageRef
from mperceiver_jax.evaluate.__main__ import main
from mperceiver_jax.evaluate.protocols.find_pairs import find_pairs
from mperceiver_jax.evaluate.protocols.pair import list_hash
from mperceiver_jax.evaluate.protocols.protocol import load_protocol
from mperceiver_jax.evaluate.protocols.reader import NoiseStream, read_pair
from mperceiver_jax.evaluate.protocols.results_log import ResultsLog
from mperceiver_jax.image_encoding import encode_png
from tests.support.evaluation_trees import NOISE, photos, save, table


def test_lists_restrict_a_set_and_the_noise_stream_does_not_depend_on_what_is_chosen(tmp_path):
    for k, photo in enumerate(photos()):
        save(tmp_path / "denoise" / "bsd68" / f"im{k}.png", photo)
        save(tmp_path / "snow100k" / "gt" / f"s{k}.jpg", photo)
        save(tmp_path / "snow100k" / "input" / f"s{k}.jpg", photo)
    (tmp_path / "snow100k" / "snowtest100k_L.txt").write_text("s0.jpg\nsub/s2.jpg\n\n")
    snow, _ = find_pairs(load_protocol("all-weather"), tmp_path, sets=["Snow100K-L"])
    assert [pair.name for pair in snow] == ["s0", "s2"]
    protocol = load_protocol("promptir-3task")
    every, _ = find_pairs(protocol, tmp_path, sets=NOISE)
    last, _ = find_pairs(protocol, tmp_path, sets=NOISE[2:])
    assert last == every[6:]
    noisy = [read_pair(pairs[-1], protocol.preprocessing, NoiseStream(0, pairs))[0] for pairs in (every, last)]
    np.testing.assert_array_equal(*noisy)


def test_published_trees_are_read_by_their_layouts(tmp_path, capsys):
    hazy, clear = tmp_path / "data" / "SOTS-outdoor" / "hazy", tmp_path / "data" / "SOTS-outdoor" / "clear"
    for k, photo in enumerate(photos()):
        save(clear / f"{k:04d}.png", photo)
        for name in ("0.8_0.2", "1_0.04"):
            save(hazy / f"{k:04d}_{name}.png", photo // 2 + 100)
            save(tmp_path / "made" / f"{k:04d}_{name}.png", photo)
    arguments = [f"--outputs={tmp_path / 'made'}", "--protocol=promptir-3task", "--sets=SOTS-outdoor", "--show=0"]
    run = lambda where, *more: main([*arguments, f"--output={tmp_path / where}", *more])
    assert run("a", f"--data={tmp_path / 'data'}") == 0
    # The same tree under any name.
    (tmp_path / "data" / "SOTS-outdoor").rename(tmp_path / "data" / "elsewhere")
    everywhere = [f"--data={tmp_path / 'data'}", f"--set=SOTS-outdoor={tmp_path / 'data' / 'elsewhere'}"]
    assert run("b", *everywhere) == 0
    assert [name for _, name in table(tmp_path / "a")] == [name for _, name in table(tmp_path / "b")]
    assert (
        len(table(tmp_path / "a")) == 6
        and float(table(tmp_path / "a")["SOTS-outdoor", "0001_1_0.04"]["input_psnr"]) < 20
    )
    (tmp_path / "data" / "elsewhere" / "clear" / "0002.png").unlink()
    assert run("c", *everywhere) == 2
    assert "hazy/0002_0.8_0.2.png (no clean image" in capsys.readouterr().err
    assert run("d", *everywhere, "--partial") == 0 and len(table(tmp_path / "d")) == 4


def test_pairs_of_different_sizes_are_named(tmp_path, capsys):
    for k, photo in enumerate(photos()):
        save(tmp_path / "gt" / f"{k}.png", photo)
        save(tmp_path / "lq" / f"{k}.png", photo[: 53 + k // 2])
    arguments = [f"--outputs={tmp_path / 'gt'}", "--protocol=folder", f"--output={tmp_path / 'out'}"]
    assert main([*arguments, f"--data={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert "2 faults" in told and "lq/1.png and" in told and "differ in size" in told and "lq/0.png" not in told


def test_outputs_may_have_names_of_their_own(tmp_path):
    for k, photo in enumerate(photos()):
        for side, name in (("gt", f"{k}.png"), ("lq", f"{k}.png"), ("made", f"{k}_restored.png")):
            save(tmp_path / side / name, photo)
    protocol, outputs = load_protocol("folder"), tmp_path / "made"
    with pytest.raises(ValueError, match="3 outputs are missing"):
        find_pairs(protocol, tmp_path, outputs=outputs)
    for data in (tmp_path, tmp_path / "gt"):  # with degraded images, and without
        pairs, _ = find_pairs(protocol, data, outputs=outputs, named="_restored$=>")
        assert [(pair.name, pair.output.name) for pair in pairs] == [(f"{k}", f"{k}_restored.png") for k in range(3)]
    with pytest.raises(ValueError, match="both called x"):
        find_pairs(protocol, tmp_path, outputs=outputs, named=".*_restored=>x")


def test_names_of_a_list_that_are_not_there_are_told(tmp_path):
    for k, photo in enumerate(photos(2)):
        for side in ("gt", "input"):
            save(tmp_path / "snow100k" / side / f"s{k}.jpg", photo)
    (tmp_path / "snow100k" / "snowtest100k_L.txt").write_text("s0.jpg\ns7.jpg\n")
    protocol = load_protocol("all-weather")
    with pytest.raises(ValueError, match=r"1 images of the list .*snowtest100k_L\.txt are not there: s7; --partial"):
        find_pairs(protocol, tmp_path, sets=["Snow100K-L"])
    pairs, warnings = find_pairs(protocol, tmp_path, sets=["Snow100K-L"], partial=True)
    assert [pair.name for pair in pairs] == ["s0"] and "not there: s7" in warnings[0]


def test_outputs_that_cannot_be_measured_are_all_named_and_left_out_where_asked(tmp_path):
    for k, photo in enumerate(photos(5, height=48)):
        for side in ("gt", "lq", "made"):
            save(tmp_path / side / f"{k}.png", photo[:48])
    made = tmp_path / "made"
    (made / "1.png").write_bytes(b"")
    (made / "2.png").write_bytes((made / "2.png").read_bytes()[:500])
    save(made / "3.png", photos(1)[0][:20])
    protocol = load_protocol("folder")
    with pytest.raises(ValueError, match=r"3 faults: .*1\.png.*2\.png.*3\.png is 70x20, not 70x48"):
        find_pairs(protocol, tmp_path, outputs=made)
    pairs, warnings = find_pairs(protocol, tmp_path, outputs=made, partial=True)
    assert [pair.name for pair in pairs] == ["0", "4"]
    assert len(warnings) == 1 and all(f"{k}.png" in warnings[0] for k in (1, 2, 3))
    # Without degraded images: an output that no truth is for.
    save(made / "9.png", photos(1)[0])
    with pytest.raises(ValueError, match=r"1 of 6 images .* have no truth"):
        find_pairs(protocol, tmp_path / "gt", outputs=made)
    pairs, _ = find_pairs(protocol, tmp_path / "gt", outputs=made, partial=True)
    assert [pair.name for pair in pairs] == ["0", "4"]


def test_a_published_tree_whose_names_differ_is_paired_by_its_layout(tmp_path):
    for k in range(76):
        for side, number in (("source", 4 * k), ("target", 4 * k + 1)):
            save(tmp_path / "DPDD" / "test_c" / side / f"1P0A{1000 + number}.png", photos(1)[0])
    pairs, _ = find_pairs(load_protocol("mperceiver-9task"), tmp_path, sets=["DPDD"])
    assert [(p.name, p.gt.path.stem) for p in pairs[:2]] == [("1P0A1000", "1P0A1001"), ("1P0A1004", "1P0A1005")]


def test_outputs_may_lie_in_folders_as_the_degraded_images_do(tmp_path):
    photo = photos(1)[0]
    for scene, frames in (("GOPR01", "12"), ("GOPR02", "23")):
        for frame in frames:
            for side in ("blur", "sharp"):
                save(tmp_path / "gopro" / "test" / scene / side / f"{frame}.png", photo)
            save(tmp_path / "made" / scene / f"{frame}.png", photo)
    protocol, given = load_protocol("mperceiver-9task"), {"sets": ["GoPro"], "outputs": tmp_path / "made"}
    pairs, _ = find_pairs(protocol, tmp_path, **given)
    names = [f"test_{scene}_blur_{k}" for scene, k in (("GOPR01", 1), ("GOPR01", 2), ("GOPR02", 2), ("GOPR02", 3))]
    assert [pair.name for pair in pairs] == names
    assert all(pair.output.parts[-2:] == (pair.lq.path.parts[-3], pair.lq.path.name) for pair in pairs)
    (tmp_path / "made" / "GOPR02" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 outputs are missing in .*: test_GOPR02_blur_2"):
        find_pairs(protocol, tmp_path, **given)


def test_lists_of_images_differ_where_their_noise_does(tmp_path):
    save(tmp_path / "denoise" / "bsd68" / "a.png", photos()[0])
    (pair,), _ = find_pairs(load_protocol("promptir-3task"), tmp_path, sets=NOISE[:1])
    assert list_hash([pair]) == list_hash([replace(pair)]) != list_hash([replace(pair, noise=(50, 0))])


def test_noise_of_sixteen_bits_is_refused(tmp_path):
    save(tmp_path / "denoise" / "bsd68" / "a.png", photos()[0])
    protocol = load_protocol("promptir-3task")
    pairs, _ = find_pairs(protocol, tmp_path, sets=NOISE[:1])
    path = tmp_path / "deep.png"
    path.write_bytes(encode_png(np.zeros((48, 64, 3), np.uint16)))
    with pytest.raises(ValueError, match="has 16"):
        read_pair(replace(pairs[0], gt=ImageRef(path)), protocol.preprocessing, NoiseStream(0, pairs))


def test_a_journal_keeps_what_fits_and_refuses_what_does_not(tmp_path):
    journal = ResultsLog(tmp_path, {"protocol": "a"})
    journal.append([{"key": "s/1", "file_signature": [1, 2], "psnr": float("inf")}])
    again = ResultsLog(tmp_path, {"protocol": "a"})
    assert again.done("s/1", [1, 2]) and not again.done("s/1", [1, 3]) and not again.done("s/2", [1, 2])
    assert again.rows["s/1"]["psnr"] == float("inf")
    with pytest.raises(ValueError, match=r"protocol: a then, b now.*--restart"):
        ResultsLog(tmp_path, {"protocol": "b"})
    (tmp_path / "images.jsonl").write_text('{"protocol": "a"}\n[1]\n')  # torn or foreign lines are none
    assert not ResultsLog(tmp_path, {"protocol": "a"}).rows
