"""Files from strangers: none runs code, and none fills the memory."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srgnn_jax.convert import load_torch_checkpoint
from srgnn_jax.data import sessions as sessions_module
from srgnn_jax.data.counts import PUBLISHED_COUNTS
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.data.sources import SOURCES, Settings, find_files, pickles
from srgnn_jax.data.store import load_dataset
from srgnn_jax.errors import UserError
from srgnn_jax.serve import exported
from tests.command import ROOT, srgnn
from tests.tiny import write_log
from tests.torch_files import Call, Global, Tensor, write_pth, write_safetensors

# --- Pickles of sessions


def write_pickles(folder, train=None):
    train = pickle.dumps([[1, 2, 3], [2, 4]]) if train is None else train
    (folder / "all_train_seq.txt").write_bytes(train)
    (folder / "test.txt").write_bytes(pickle.dumps(([[3, 1], [3]], [2, 1])))


def refused(folder):
    config = Settings()
    with pytest.raises(UserError) as error:
        pickles.read(find_files(pickles, folder, config), config)
    text = str(error.value)
    assert str(folder / "all_train_seq.txt") in text
    assert "\n" not in text
    return text


def nested_tuple(levels):
    """A tuple of one tuple twice, and so on: small, but 2**levels long if walked."""
    return b"\x80\x02K\x01\x85" + b"q\x00h\x00\x86" * levels


SESSION = b"]q\x01(" + b"K\x01" * 100_000 + b"e"
HOSTILE_PICKLES = {
    "os.system": (b"cos\nsystem\n(S'touch ran'\ntR.", "os.system"),
    "nested in a list": (
        b"(lp0\n(lp1\ncos\nsystem\n(S'touch ran'\ntRa a.",
        "os.system",
    ),
    "by a stacked name": (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        "posix.system",
    ),
    "an instance": (b"(ios\nsystem\n.", "the instruction INST"),
    "a name behind the memo": (
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x01x\x85R.",
        "the instruction POP",
    ),
    "builtins": (b"c__builtin__\neval\n(S'1'\ntR.", "eval"),
    "an extension code": (b"\x80\x02\x82\x01.", "EXT1"),
    "the hash of a tuple in tuples": (
        b"\x80\x02}" + nested_tuple(60)[2:] + b"K\x01s.",
        "a dict or a set",
    ),
    "a set of such": (
        b"\x80\x04\x8f(" + nested_tuple(60)[2:] + b"\x90.",
        "a dict or a set",
    ),
    "a frozen set of such": (
        b"\x80\x04(" + nested_tuple(60)[2:] + b"\x91.",
        "a dict or a set",
    ),
    "a tuple in tuples": (nested_tuple(60) + b".", "does not hold a list"),
    "one list, 100,000 times": (
        b"\x80\x02](" + SESSION + b"h\x01" * 100_000 + b"e.",
        "repeats its lists",
    ),
    "a far memo slot": (b"\x80\x02]r\xff\xff\xff\xff.", "does not hold a list"),
    "a length beyond the file": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fx.", "damaged"),
    "nested lists": (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "is not"),
}


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
def test_hostile_pickles(tmp_path, monkeypatch, kind):
    data, message = HOSTILE_PICKLES[kind]
    monkeypatch.chdir(tmp_path)
    write_pickles(tmp_path, data)
    assert message in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- Weights

TABLE = np.zeros((3, 2), np.float32)


def test_entries_of_an_archive_that_claim_the_same_bytes(tmp_path):
    """Like a zip bomb: each entry has the size of the file, together they exceed it."""
    path = write_pth(tmp_path / "a.pth", {"a": Tensor(np.zeros(10_000, np.float32))})
    with zipfile.ZipFile(path, "a") as archive:
        whole = archive.getinfo("weights/data/0")
        for n in range(1, 20):
            entry = zipfile.ZipInfo(f"weights/data/{n}")
            entry.file_size = entry.compress_size = whole.file_size
            entry.header_offset, entry.CRC = whole.header_offset, whole.CRC
            archive.filelist.append(entry)
        archive._didModify = True
    with pytest.raises(UserError, match=r"entries claim more than the file's"):
        load_torch_checkpoint(path)


def test_a_storage_is_read_once_for_all_its_tensors(tmp_path, monkeypatch):
    base = np.arange(1000, dtype=np.float32)
    names = ["item_embedding.weight", *(f"t{n}" for n in range(1, 200))]
    root = {name: Tensor(base[n : n + 1], base) for n, name in enumerate(names)}
    for tensor in root.values():
        tensor.changes = {
            "identity": ("storage", Global("torch", "FloatStorage"), "0", "cpu", 1000)
        }
    path = write_pth(tmp_path / "a.pth", root)
    reads, read = [], zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile,
        "read",
        lambda self, name: reads.append(name) or read(self, name),
    )
    weights = load_torch_checkpoint(path)
    assert weights["t7"].tolist() == [7.0]
    assert reads.count("weights/data/0") == 1


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (([0, 24], [0, 24]), "damaged.*invalid offset"),
        (([0, 24], [20, 44]), "damaged.*invalid offset"),
        (([0, 1 << 70], [0, 24]), "damaged"),
        (([24, 0], [0, 24]), "damaged"),
        (([-24, 0], [0, 24]), "damaged"),
    ],
)
def test_spans_of_safetensors(tmp_path, spans, message):
    entries = {
        name: {"dtype": "F32", "shape": [3, 2], "data_offsets": span}
        for name, span in zip("ab", spans, strict=True)
    }
    arrays = {"a": TABLE, "b": TABLE}
    path = write_safetensors(tmp_path / "a.safetensors", arrays, entries)
    with pytest.raises(UserError, match=message):
        load_torch_checkpoint(path)


@pytest.mark.parametrize("claimed", [11 << 20, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_headers_beyond_reason(tmp_path, claimed):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + b'{"a":' + b" " * (12 << 20))
    with pytest.raises(UserError, match="damaged, or not safetensors"):
        load_torch_checkpoint(path)


# --- Memory

BOMBS = """
import pathlib, resource, sys
from srgnn_jax.data.sources import Settings, find_files, pickles
from srgnn_jax.data.sessions import Vocabulary
from srgnn_jax.errors import UserError
from srgnn_jax.convert import load_torch_checkpoint

in_use = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (in_use + (600 << 20),) * 2)
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        if path.is_dir():
            config = Settings()
            pickles.read(find_files(pickles, path, config), config)
        elif path.suffix == ".parquet":
            Vocabulary.load(path)
        else:
            load_torch_checkpoint(path)
    except UserError as error:
        print(error)
"""


@pytest.mark.slow  # writes files that would take many GB
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded(tmp_path):
    """Each of these would take many GB if it were trusted."""
    folder = tmp_path / "pickles"
    folder.mkdir()
    write_pickles(folder, HOSTILE_PICKLES["one list, 100,000 times"][0])
    far = tmp_path / "far"
    far.mkdir()
    write_pickles(far, HOSTILE_PICKLES["a far memo slot"][0])
    laughs = ["ha"] * 10
    for _ in range(20):
        laughs = [laughs] * 10
    text = "x" * (1 << 19)
    objects = [Call(Global("torch", "device"), text) for _ in range(30_000)]
    tensors = {"a": Tensor(TABLE)}
    views = {
        f"a{n}": Tensor(TABLE, shape=(10**6, 10**3), strides=(0, 0)) for n in range(99)
    }
    pths = [
        write_pth(tmp_path / "laughs.pth", {"config": laughs, "state_dict": tensors}),
        write_pth(tmp_path / "texts.pth", {"config": objects, "state_dict": tensors}),
        write_pth(tmp_path / "views.pth", views),
        write_pth(tmp_path / "far.pth", {}, data=b"\x80\x02]r\xff\xff\xff\xff."),
        write_pth(tmp_path / "many.pth", {}, data=b"}\x94" * (1 << 20)),
    ]
    header = struct.pack("<Q", 1 << 40) + b"{" * 100
    (tmp_path / "a.safetensors").write_bytes(header)
    rows = tmp_path / "rows.parquet"
    pl.DataFrame({"item": pl.repeat("a", 50_000_000, eager=True)}).write_parquet(rows)
    assert rows.stat().st_size < 100_000
    long = tmp_path / "long.parquet"
    schema = pa.schema([("item", pa.large_string())])
    with pq.ParquetWriter(
        long, schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for n in range(100):
            ids = pa.array(["a" * (10 << 20) + str(n)], pa.large_string())
            writer.write_table(pa.table({"item": ids}))
    assert long.stat().st_size < 100_000
    paths = [folder, far, *pths, tmp_path / "a.safetensors", long, rows]
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        assert str(path) in line
    assert "claims 50,000,000 rows" in lines[-1]


# --- Vocabularies and exports


VOCABULARIES = {
    "no parquet": (lambda path: path.write_bytes(b"PAR1"), "cannot read"),
    "a list of numbers": (
        lambda path: pl.DataFrame({"item": [1, 2]}).write_parquet(path),
        "its columns are",
    ),
    "another column": (
        lambda path: pl.DataFrame({"item": ["a"], "x": [1]}).write_parquet(path),
        "its columns are",
    ),
    "an empty row": (
        lambda path: pl.DataFrame({"item": ["a", None]}).write_parquet(path),
        "an empty row",
    ),
    "an id twice": (
        lambda path: pl.DataFrame({"item": ["a", "a"]}).write_parquet(path),
        "must differ",
    ),
    "long ids": (
        lambda path: pl.DataFrame(
            {"item": ["a" * 10**6 + str(n) for n in range(9)]}
        ).write_parquet(path),
        "more than such a file holds",
    ),
    "one long id, again and again": (
        lambda path: pl.DataFrame({"item": ["a" * 10**6] * 20}).write_parquet(path),
        "more than such a file holds",
    ),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_vocabularies_that_are_none(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sessions_module, "ALWAYS_UNPACKED", 1 << 20)
    make, message = VOCABULARIES[kind]
    path = tmp_path / "vocabulary.parquet"
    make(path)
    with pytest.raises(UserError, match=message) as error:
        Vocabulary.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "inner/../../secret"])
def test_an_export_that_names_files_elsewhere(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "export"
    folder.mkdir()
    digest = hashlib.sha256(b"x").hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"files": {name: digest}}))
    with pytest.raises(ValueError, match=r"manifest\.json names .* outside of"):
        exported.Recommender.load(folder)


def test_weights_of_an_export_are_among_those_that_were_hashed(tmp_path):
    manifest = {"files": {}, "lengths": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    np.savez(tmp_path / "weights.npz", item_embedding=TABLE)
    with pytest.raises(KeyError, match=r"weights\.npz"):
        exported.Recommender.load(tmp_path)


# --- Settings that would have no effect


def test_settings_that_pickles_ignore_are_refused(tmp_path):
    write_pickles(tmp_path)

    def read(dataset, **settings):
        return load_dataset(
            dataset, data_dir=tmp_path, prepared_dir=tmp_path / "p", **settings
        )

    for dataset in ("srgnn_pickles", "diginetica", "yoochoose"):
        for name, value in (
            ("min_item_count", 1),
            ("min_session_length", 3),
            ("test_days", 3.0),
            ("test_start", "2014-01-01"),
            ("train_fraction", 0.5),
            ("separator", ","),
        ):
            with pytest.raises(UserError, match=rf"config\.{name} is .*change nothing"):
                read(dataset, **{name: value})
    assert len(read("srgnn_pickles", on_bad_row="skip").train)
    assert len(read("diginetica", test_days=7.0).train)
    assert len(read("yoochoose", train_fraction=1 / 4, date_resolution_seconds=1).train)


def test_settings_that_other_readers_ignore_are_refused(tmp_path):
    (tmp_path / "a.inter").write_text("x")
    with pytest.raises(UserError, match=r"config\.test_days is 3\.0, .*recbole_inter"):
        load_dataset(
            "recbole_inter", data_dir=tmp_path, prepared_dir=tmp_path, test_days=3.0
        )
    write_log(tmp_path / "data" / "log.csv")
    with pytest.raises(UserError, match=r"config\.recbole_time is 'float32'"):
        load_dataset(
            "click_log",
            data_dir=tmp_path / "data",
            prepared_dir=tmp_path,
            recbole_time="float32",
        )
    for source in SOURCES.values():
        assert set(Settings.__dataclass_fields__) >= source.SETTINGS


def test_pickles_of_another_fraction_are_refused(tmp_path, monkeypatch):
    write_pickles(tmp_path)
    counts = {"train_examples": 3, "clicks": 10}
    monkeypatch.setitem(PUBLISHED_COUNTS, "yoochoose_1_4", counts)

    def read(fraction):
        return load_dataset(
            "yoochoose",
            data_dir=tmp_path,
            prepared_dir=tmp_path / "p",
            train_fraction=fraction,
        )

    with pytest.raises(
        UserError, match=r"holds yoochoose_1_4, not yoochoose_1_64.*:1_4"
    ):
        read(1 / 64)
    assert read(1 / 4).published == counts


def test_recbole_data_without_a_validation_split_is_told(tmp_path, caplog):
    lines = [f"{n // 3}\ti{n % 3}\t{n}\n" for n in range(9)]
    text = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(lines)
    (tmp_path / "log.inter").write_text(text)
    for _ in range(2):
        caplog.clear()
        load_dataset("recbole_inter", data_dir=tmp_path, prepared_dir=tmp_path / "p")
        assert "held out instead" in caplog.text


# --- Configs


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evil.txt", b"open('ran', 'w')", "a config is a Python file"),
        ("evil.json", b'{"a": open("ran", "w")}', "a config is a Python file"),
        ("evil.pkl", b"cos\nsystem\n(S'touch ran'\ntR.", "a config is a Python file"),
        ("big.py", b"open('ran', 'w')\n" + b"#" * (1 << 20), "too many for a config"),
        ("deep.py", b"x = " + b"-" * 900_000 + b"1", "cannot use --config"),
        ("binary.py", b"\0\1\2", "null bytes"),
        ("folder.py", None, "a config is a Python file"),
    ],
)
def test_configs_that_are_no_python_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    done = srgnn(f"--config={path}", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr[-2000:]
    assert not (tmp_path / "ran").exists()
    if name == "evil.txt":
        (tmp_path / "flags").write_text(f"--config={path}\n")
        for arguments in (["--config", str(path)], [f"--flagfile={tmp_path}/flags"]):
            assert message in srgnn(*arguments, cwd=tmp_path).stderr
        assert not (tmp_path / "ran").exists()
