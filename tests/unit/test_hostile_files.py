"""Files of strangers straight into the readers: each is one error of ours, within a bounded time and memory."""

import contextlib
import gzip
import hashlib
import json
import os
import resource
import struct
import zipfile
import zlib
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipelines.training.federation_file import read_federation
from ray_fed.errors import DataError, FedError
from ray_fed.leakage.images import load_images
from ray_fed.learning.layout import Layout, initial_vector
from ray_fed.materials.databases.readers import open_table
from ray_fed.materials.features.elements import read_element_table
from ray_fed.micrographs.image_files import read_grey, read_values
from ray_fed.micrographs.model_file import SegmenterCard, load_segmenter, save_segmenter
from ray_fed.micrographs.unet import UNetDesign, seeded_unet
from ray_fed.model_library.index import parse_query
from ray_fed.model_library.places import pull
from ray_fed.model_library.store import Library
from ray_fed.reporting.model_files import ModelCard, load_model, save_model
from ray_fed.reporting.run_directory import RunDirectory
from ray_fed.reporting.writing import to_json
from ray_fed.style_transfer.artifact import MAGIC, unpacked
from ray_fed.style_transfer.image_features import GrainStatistics
from ray_fed.style_transfer.networks import GeneratorSpec

MAX_MEGABYTES = 2000
"""More than any of these readers needs beyond what is loaded already."""


@pytest.fixture(autouse=True)
def bounded_memory():
    """A reader that takes what a file claims fails here instead of filling the machine."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MAX_MEGABYTES * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read):
    """Return the message of the refusal; anything but an error of ours is a failure."""
    with pytest.raises(FedError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    return text


# ---- pictures


def png(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width) * 200) for _ in range(height // 200)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def tiff(path, pixels, **claims):
    tifffile.imwrite(path, pixels)
    content = bytearray(path.read_bytes())
    for tag, value in claims.values():
        at = content.find(struct.pack("<H", tag))
        content[at + 8 : at + 12] = struct.pack("<I", value)
    path.write_bytes(content)
    return path


def linked(path, to):
    path.symlink_to(to)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def cut(path):
    path.write_bytes(png(path, 400, 400).read_bytes()[:200])
    return path


PICTURES = {
    "20000 x 20000 zeros": lambda folder: png(folder / "a.png", 20000, 20000),
    "13000 x 13000 zeros": lambda folder: png(folder / "a.png", 13000, 13000),
    "a TIFF that claims 2^31 x 2^31": lambda folder: tiff(
        folder / "a.tif", np.zeros((8, 8, 3), np.uint16), width=(256, 2**31 - 1), height=(257, 2**31 - 1)
    ),
    "a TIFF that claims 2^31 lines": lambda folder: tiff(
        folder / "a.tif", np.zeros((8, 8), np.uint8), height=(257, 2**31 - 1)
    ),
    "NaN": lambda folder: tiff(folder / "a.tif", np.full((8, 8), np.nan, np.float32)),
    "50 pages": lambda folder: tiff(folder / "a.tif", np.zeros((50, 8, 8), np.uint8)),
    "complex numbers": lambda folder: tiff(folder / "a.tif", np.zeros((8, 8), np.complex64)),
    "a PNG that was cut": lambda folder: cut(folder / "a.png"),
    "a link to /etc/passwd": lambda folder: linked(folder / "a.png", "/etc/passwd"),
    "a link to /dev/zero": lambda folder: linked(folder / "a.png", "/dev/zero"),
    "a pipe": lambda folder: pipe(folder / "a.tif"),
    "a folder": lambda folder: folder,
}


@pytest.mark.parametrize("read", [read_grey, read_values])
@pytest.mark.parametrize("what", PICTURES)
def test_a_hostile_picture_is_one_line(tmp_path, what, read):
    assert "silo 'a'" in refused(lambda: read(PICTURES[what](tmp_path), "silo 'a'"))


NUMBERS = ("NaN", "complex numbers", "50 pages")
"""Of a TIFF, which a folder of pictures does not look at."""


# ---- generators


SPEC = json.loads(json.dumps(asdict(GeneratorSpec())))
GRAINS = {each.name: 1.0 for each in fields(GrainStatistics)}
HEADER = {
    "silo": "a", "generator": SPEC, "bits": 8, "sha256": "", "num_images": 1, "validation_l1": 0, "line_width_px": 1,
    "grains": GRAINS,
}  # fmt: skip


def message(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(MAGIC + len(text).to_bytes(4, "little") + text, np.uint8)


GENERATORS = {
    "lists in lists": b"[" * 4000,
    "objects in objects": b'{"a":' * 800,
    "a number of 4,000 digits": b'{"silo":' + b"9" * 4080 + b"}",
    "a number": b"5",
    "no generator": {**HEADER, "generator": {}},
    "no grains": {**HEADER, "grains": None},
    "bits in a list": {**HEADER, "bits": [8]},
    "an infinite error": {**HEADER, "validation_l1": float("inf")},
    "10^3000 images": {**HEADER, "num_images": 10**3000},
    "an error of 10^400": {**HEADER, "validation_l1": 10**400},
    "a width of lines in text": {**HEADER, "line_width_px": "1"},
    **{
        f"grains of {str(value)[:10]}": {**HEADER, "grains": dict.fromkeys(GRAINS, value)}
        for value in ("x", [1], None, 10**400, float("nan"), True)
    },
    **{
        f"{key}={str(value)[:20]}": {**HEADER, "generator": {**SPEC, key: value}}
        for key, value in (
            ("width", 10**9), ("width", 10**400), ("width", -1), ("width", True), ("width", [1]), ("width", "x"),
            ("width", 2.5), ("width", None), ("architecture", ["x"]), ("architecture", {}), ("inputs", ["a"] * 300),
            ("inputs", [1]), ("inputs", "a"), ("inputs", {}),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("what", GENERATORS)
def test_a_hostile_generator_names_its_sender(what):
    assert "generator received from silo 'a' refused" in refused(lambda: unpacked(message(GENERATORS[what]), "a"))


# ---- models


def model_at(folder):
    card = ModelCard("m", "p", "eV", {}, ("x",), {}, {}, 0, (), {}, {}, software={}, created="2026")
    arrays = {"w": np.ones(2, np.float32), "scaler.mean": np.zeros(1), "scaler.scale": np.ones(1)}
    save_model(folder / "m", arrays, card)
    return folder / "m"


CARDS = {
    "lists in lists": b"[" * 200_000,
    "objects in objects": b'{"a":' * 100_000,
    "a number": b"5",
    "null bytes": b"\0" * 10,
    "no UTF-8": b"\xff\xfe",
    "a number of 6,000 digits": b'{"seed":' + b"9" * 6000 + b"}",
    "a number beyond all numbers": b'{"seed":1e999}',
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("what", CARDS)
def test_a_hostile_card_is_one_line(tmp_path, what):
    path = model_at(tmp_path)
    path.with_name("m.card.json").write_bytes(CARDS[what])
    assert "m.card.json" in refused(lambda: load_model(path))
    assert "m.card.json" in refused(lambda: load_segmenter(path))


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


WEIGHTS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a negative shape": tensors({"a": one(shape=(-1,))}, b"0000"),
    "a shape of 2^80": tensors({"a": one(shape=(2**40, 2**40))}, b"0000"),
    "tensors in one place": tensors({"a": one(), "b": one()}, b"0000"),
    "lists in lists": tensors(b"[" * 5000),
    "an unknown dtype": tensors({"a": one("Q9")}, b"0000"),
    "a dtype that NumPy lacks": tensors({"a": one("BF16", (2,))}, b"0000"),
    "another that it lacks": tensors({"a": one("F8_E4M3", (4,))}, b"0000"),
    "nothing": b"",
    "a number": tensors(b"5"),
    "text": tensors(b"\xff" * 10),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_hostile_weights_are_one_line(tmp_path, what):
    path, content = model_at(tmp_path), WEIGHTS[what]
    path.with_name("m.safetensors").write_bytes(content)
    card = ModelCard.from_mapping(json.loads(path.with_name("m.card.json").read_bytes()))
    card = replace(card, weights_sha256=hashlib.sha256(content).hexdigest(), id="")
    path.with_name("m.card.json").write_bytes(to_json(replace(card, id=card.digest()).to_mapping()))
    assert "m.safetensors" in refused(lambda: load_model(path))


@pytest.mark.parametrize("what", WEIGHTS)
def test_hostile_weights_of_a_segmenter_are_one_line(tmp_path, what):
    design = UNetDesign((8, 16))
    vector = initial_vector(seeded_unet(design, 0), "average")
    assert len(vector) == Layout.of(seeded_unet(design, 0)).size
    save_segmenter(tmp_path / "m", vector, SegmenterCard("m", design, 32))
    (tmp_path / "m.safetensors").write_bytes(WEIGHTS[what])
    card = json.loads((tmp_path / "m.card.json").read_bytes())
    card["weights_sha256"] = hashlib.sha256(WEIGHTS[what]).hexdigest()
    (tmp_path / "m.card.json").write_bytes(to_json(card))
    assert "m.safetensors" in refused(lambda: load_segmenter(tmp_path / "m"))


@pytest.mark.parametrize("suffix", [".safetensors", ".card.json"])
@pytest.mark.parametrize("to", ["/dev/zero", "pipe", "sparse"])
def test_a_model_that_is_no_file_is_one_line(tmp_path, suffix, to):
    path = model_at(tmp_path)
    file = path.with_name(f"m{suffix}")
    file.unlink()
    if to == "pipe":
        pipe(file)
    elif to == "sparse":
        file.touch()
        os.truncate(file, 2**40)
    else:
        linked(file, to)
    assert "cannot be read" in refused(lambda: load_model(path))
    assert path.name in refused(lambda: load_segmenter(path))


# ---- tables of materials


def packed(path, megabytes):
    with gzip.open(path, "wb", 1) as file:
        for _ in range(megabytes):
            file.write(bytes(2**20))
    return path


def written(path, content):
    path.write_bytes(content)
    return path


TABLES = {
    "a packed bomb": lambda folder: packed(folder / "a.csv.gz", 600),
    "no gzip": lambda folder: written(folder / "a.csv.gz", b"formula,energy\n"),
    "lists in lists": lambda folder: written(folder / "a.json", b"[" * 200_000),
    "objects in objects": lambda folder: written(folder / "a.json", b'{"a":' * 100_000),
    "no UTF-8": lambda folder: written(folder / "a.csv", b"\xff\xfe\xff"),
    "a cell of 10 MB": lambda folder: written(folder / "a.csv", b'formula\n"' + b"x" * 10**7),
    "no parquet": lambda folder: written(folder / "a.parquet", b"PAR1" + os.urandom(100) + b"PAR1"),
    "a link to /dev/zero": lambda folder: linked(folder / "a.csv", "/dev/zero"),
    "a pipe": lambda folder: pipe(folder / "a.json"),
    "a sparse file": lambda folder: sparse(folder / "a.csv"),
}


def sparse(path):
    path.touch()
    os.truncate(path, 2**42)
    return path


@pytest.mark.parametrize("what", TABLES)
def test_a_hostile_table_is_one_line(tmp_path, what):
    refused(lambda: open_table(TABLES[what](tmp_path), "energy"))


# ---- images to attack, element tables


def arrays_at(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def claimed(path):
    """An array that claims 2^40 values."""
    header = b"\x93NUMPY\x01\x00\x76\x00" + (
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", header + bytes(8))
    return path


def bomb(path):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("images.npy", "w", force_zip64=True) as to,
    ):
        for _ in range(2100):
            to.write(bytes(2**20))
    return path


def objects(path):
    np.savez(path, images=np.array([{"a": 1}], dtype=object), labels=np.zeros(1, int))
    return path


IMAGES = {
    "objects of Python": objects,
    "2^40 values": claimed,
    "2 GB of zeros": bomb,
    "no zip": lambda path: written(path, b"PK\3\4" + os.urandom(100)),
    "complex numbers": lambda path: arrays_at(path, images=np.zeros((2, 4, 4), complex), labels=np.zeros(2, int)),
    "dates": lambda path: arrays_at(path, images=np.zeros((2, 4, 4), "M8[s]"), labels=np.zeros(2, int)),
    "text": lambda path: arrays_at(path, images=np.zeros((2, 4, 4), "U3"), labels=np.zeros(2, int)),
    "a pipe": pipe,
    "a device": lambda path: linked(path, "/dev/zero"),
}


@pytest.mark.parametrize("what", IMAGES)
def test_a_hostile_set_of_images_is_one_line(tmp_path, what):
    refused(lambda: load_images(str(IMAGES[what](tmp_path / "a.npz"))))


@pytest.mark.parametrize("what", [each for each in PICTURES if "TIFF" not in each and each not in NUMBERS])
def test_a_hostile_picture_in_a_folder_of_images_is_one_line(tmp_path, what):
    folder = tmp_path / "images"
    folder.mkdir()
    PICTURES[what](folder)
    refused(lambda: load_images(str(folder)))


@pytest.mark.parametrize("content", [b"\xff", b"a\n" + b"x" * 10**7, b'"', b"", b"\0\0\n\0"], ids=range(5))
def test_a_hostile_element_table_is_one_line(tmp_path, content):
    refused(lambda: read_element_table(written(tmp_path / "a.csv", content)))


# ---- libraries


QUERIES = [
    'property = "x" OR 1=1 --', "property = 'x'; DROP TABLE models; --", "mae < 1; DROP TABLE models", '"; DROP',
    "mae < 1e999 eV", "mae < nan", "(" * 5000, "(" * 100 + "mae<1" + ")" * 100, "order by (select 1)",
    "mae < 1 order by (select 1)", "limit 999999999999999999999999", "n_train > 9" + "9" * 400,
    "n_train > 9" + "9" * 5000, 'id = "\ud800"', 'property = "\x00"', "not " * 3000 + "mae<1",
    " and ".join(["mae<1"] * 30_000), 'property = "' + "a" * 10**6 + '"', "limit \u0661\u00b2",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=[query.encode("ascii", "backslashreplace")[:20] for query in QUERIES])
def test_a_hostile_query_is_one_line(query):
    refused(lambda: parse_query(query))


@pytest.fixture
def library(tmp_path):
    return Library.create(tmp_path / "library")


PLACES = [
    "file:///etc", "/etc/passwd", "http://127.0.0.1:9/x", "memory://x", "zip://x::/tmp", "ftp://127.0.0.1:1", "jar://",
    "::", "", "reference://", "nothing://x", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_place_is_one_line(library, place):
    refused(lambda: pull(library, place))


MODEL_ID = "ab" + "0" * 62


@pytest.mark.parametrize("what", ["a deep card", "weights without end", "a card without end", "a pipe", "no weights"])
def test_a_hostile_model_of_a_place_is_one_line(library, tmp_path, what):
    folder = tmp_path / "place" / "models" / "ab"
    folder.mkdir(parents=True)
    card, weights = folder / f"{MODEL_ID}.card.json", folder / f"{MODEL_ID}.safetensors"
    card.write_bytes(b"[" * 200_000)
    if what == "weights without end":
        linked(weights, "/dev/zero")
    elif what == "a pipe":
        pipe(weights)
    elif what != "no weights":
        weights.write_bytes(b"x")
    if what == "a card without end":
        card.unlink()
        linked(card, "/dev/zero")
    copied = pull(library, str(tmp_path / "place"))
    [fault] = copied.faults
    assert (copied.ids, fault.id, "\n" in fault.what) == ([], MODEL_ID, False)
    assert "model ab0000000000" in fault.what


BAD_LISTS = [b"[" * 200_000, b'{"a": 1}', b"not json", b"[1]", b'["x"]', b'["\\ud800"]', b"9" * 5000]


@pytest.mark.parametrize("content", BAD_LISTS, ids=[str(content[:8]) for content in BAD_LISTS])
def test_a_hostile_list_in_a_library_is_one_line(library, content):
    (library.path / "deprecated.json").write_bytes(content)
    assert "deprecated.json" in refused(library.deprecated)
    assert "deprecated.json" in refused(library.reindex)
    assert library.index.path.is_file(), "a reindex that fails leaves the index as it was"


@pytest.mark.parametrize("content", [b"[" * 200_000, b"5", b"{}", b"no json"], ids=["deep", "5", "empty", "no json"])
def test_a_hostile_file_in_a_library_is_one_line(library, content):
    (library.path / "failures").mkdir()
    (library.path / "failures" / "x.json").write_bytes(content)
    [fault] = library.reindex()
    assert ("x.json" in fault.what, "\n" in fault.what) == (True, False)
    assert (library.path / "damaged" / "x.json").is_file()
    (library.path / "library.json").write_bytes(content)
    assert "library" in refused(lambda: Library.open(library.path))


# ---- received federation files


FEDERATIONS = {
    "lists in lists": b"[" * 50_000,
    "levels": b"a:\n" + b"".join(b" " * n + b"a:\n" for n in range(1, 200)),
    "aliases that multiply": b"a: &a [x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(20)),
    "an object of Python": b"silos: !!python/object/apply:os.getcwd []",
    "a number of 5,000 digits": b"silos: " + b"9" * 5000,
    "no text": b"\xff\xfe\x00",
    "2 MB": b"#" * 2**21,
    "a date of month 13": b"silos: 2026-13-01",
}


@pytest.mark.parametrize("what", FEDERATIONS)
def test_a_hostile_federation_file_is_one_line(tmp_path, what):
    assert "f.yaml" in refused(lambda: read_federation(str(written(tmp_path / "f.yaml", FEDERATIONS[what]))))


@pytest.mark.parametrize("make", [pipe, lambda path: linked(path, "/dev/zero"), sparse])
def test_a_federation_file_that_is_none_is_one_line(tmp_path, make):
    assert "cannot be read" in refused(lambda: read_federation(str(make(tmp_path / "f.yaml"))))


# ---- run folders


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff", b"{a: [", b"9" * 5000 + b"}"])
def test_a_hostile_file_of_a_run_is_one_line(tmp_path, content):
    run = RunDirectory(tmp_path)
    for path, read in (
        (run.config_path, run.read_config),
        (run.summary_path, run.read_summary),
        (run.data_path, run.read_data),
        (run.metrics_path, run.read_metrics),
        (run.history_path, run.read_history),
        (run.timing_path, run.read_timing),
    ):
        path.write_bytes(content + b"\n")
        assert path.name in refused(read)


def test_a_run_folder_of_links_and_pipes_is_not_waited_for(tmp_path):
    run = RunDirectory(tmp_path)
    pipe(run.config_path)
    linked(run.summary_path, "/dev/zero")
    assert "no regular file" in refused(run.read_config)
    assert "no regular file" in refused(run.read_summary)


def test_what_is_refused_is_told_apart_from_what_is_ours():
    with contextlib.suppress(DataError):
        raise DataError("an error of ours")
