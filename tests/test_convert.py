"""PyTorch checkpoints are read safely, and all of their names are mapped."""

import functools
import io
import itertools
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from srgnn_jax.convert import (
    load_torch_checkpoint,
    params_from_torch,
    params_to_torch,
    torch_pickle,
)
from srgnn_jax.errors import UserError
from srgnn_jax.model.srgnn import SRGNN, init_params
from tests.torch_files import (
    REBUILD,
    TABLE,
    Call,
    Global,
    Tensor,
    Writer,
    in_storage,
    tensors,
    write_pth,
    write_safetensors,
)

NUM_ITEMS, D = 11, 4
PARAMETER = Global("torch._utils", "_rebuild_parameter")


@functools.cache
def shapes(readout: str = "hybrid", **options) -> dict:
    """Returns the tree of `SRGNN`'s parameters as shapes, without numbers."""
    model = SRGNN(NUM_ITEMS, D, readout=readout, **options)
    return jax.eval_shape(lambda: init_params(model, seed=1))


def make_params(readout: str = "hybrid", dtype=np.float32, **options) -> dict:
    """Returns new random parameters."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(dtype),
        shapes(readout, **options),
    )


WEIGHTS = params_to_torch(make_params(), "recbole")


def assert_equal_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# --- Names


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("readout", ["hybrid", "attention"])
def test_original_round_trip(readout, dtype):
    params = make_params(readout, dtype)
    weights = params_to_torch(params, "original")
    assert weights["gnn.w_ih"].shape == (3 * D, 2 * D)
    assert weights["linear_transform.weight"].shape == (D, 2 * D)
    assert weights["gnn.linear_edge_f.weight"].shape == (D, D)
    assert_equal_trees(params_from_torch(weights, "original", readout), params)


def test_recbole_round_trip_and_its_numbers():
    params = make_params()
    weights = params_to_torch(params, "recbole")
    np.testing.assert_array_equal(
        weights["linear_one.weight"], params["readout"]["linear_one"]["kernel"].T
    )
    np.testing.assert_array_equal(weights["gnn.b_ioh"], params["gnn"]["b_oah"])
    np.testing.assert_array_equal(weights["gnn.w_ih"], params["gnn"]["w_ih"].T)
    assert all(array.flags.c_contiguous for array in weights.values())
    assert_equal_trees(params_from_torch(weights, "recbole"), params)


def test_only_the_originals_update_gate_is_turned_round():
    weights = params_to_torch(make_params(), "recbole")
    weights["embedding.weight"] = weights.pop("item_embedding.weight")
    weights["gnn.b_oah"] = weights.pop("gnn.b_ioh")
    gnn = params_from_torch(weights, "original")["gnn"]
    sign = np.repeat([1, -1, 1], D)
    for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
        np.testing.assert_array_equal(gnn[name].T, (sign * weights[f"gnn.{name}"].T).T)


def test_arrays_are_copies():
    weights = params_to_torch(make_params(), "original")
    before = {name: array.copy() for name, array in weights.items()}
    for leaf in jax.tree.leaves(params_from_torch(weights, "original")):
        leaf += 1
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[name])


def test_all_faults_are_listed_in_one_error():
    weights = params_to_torch(make_params(), "recbole")
    del weights["gnn.b_iah"], weights["linear_one.bias"]
    weights["embedding.weight"] = np.zeros((2, 2), np.float32)
    weights["linear_two.weight"] = np.zeros((D, D + 1), np.float32)
    weights["linear_three.weight"] = np.zeros((1, D), np.int64)
    with pytest.raises(UserError) as error:
        params_from_torch(weights, "recbole")
    message = str(error.value)
    assert "missing: gnn.b_iah, linear_one.bias;" in message
    assert "unknown: embedding.weight;" in message
    assert "linear_two.weight [4, 5] instead of [4, 4]" in message
    assert "linear_three.weight (int64)" in message
    assert "\n" not in message


def test_item_table_of_the_wrong_shape_is_the_only_fault_named():
    weights = params_to_torch(make_params(), "recbole")
    weights["item_embedding.weight"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"wrong shape: item_embedding.weight \[3\] inst"
    ) as e:
        params_from_torch(weights, "recbole")
    assert "linear" not in str(e.value)


def test_recbole_is_always_hybrid():
    weights = params_to_torch(make_params(), "recbole")
    with pytest.raises(UserError, match=r"unknown: linear_transform.bias, linear_tr"):
        params_from_torch(weights, "recbole", "attention")


@pytest.mark.parametrize("source", ["recbole", "original"])
def test_options_that_torch_lacks_are_refused(source):
    weights = params_to_torch(make_params(), source)
    with pytest.raises(UserError, match=r"the readout is 'local'.*hybrid or att"):
        params_from_torch(weights, source, "local")
    with pytest.raises(UserError, match=r"unknown: .*readout/position_embedding"):
        params_to_torch(make_params(reverse_positions=2), source)
    with pytest.raises(UserError, match=r"missing: .*readout/linear_one/kernel"):
        params_to_torch(make_params("average"), source)


def test_faulty_parameters_are_listed():
    params = make_params()
    del params["gnn"]["b_iah"]
    params["gnn"]["b_iax"] = np.zeros(D)
    params["readout"]["linear_three"]["kernel"] = np.zeros((1, D), np.float32)
    with pytest.raises(UserError) as error:
        params_to_torch(params, "recbole")
    assert "missing: gnn/b_iah; unknown: gnn/b_iax;" in str(error.value)
    assert "linear_three/kernel [1, 4] instead of [4, 1]" in str(error.value)


@pytest.mark.parametrize("function", [params_from_torch, params_to_torch])
def test_unknown_source(function):
    known = "'torch', not one of 'recbole', 'recbole_gnn', 'original'"
    with pytest.raises(UserError, match=known):
        function({}, "torch")


def recbole_gnn_sessions(weights, sessions, step):
    """Embeds sessions as RecBole-GNN's `SRGNN` does, along edge lists, in float64."""
    of = {name: np.float64(array) for name, array in weights.items()}

    def linear(name, x):
        return x @ of[f"{name}.weight"].T + of.get(f"{name}.bias", 0)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def mean_of_messages(name, hidden, edges):
        messages, mean = linear(f"gnncell.{name}.lin", hidden), np.zeros_like(hidden)
        for v in {v for _, v in edges}:
            mean[v] = messages[[u for u, w in edges if w == v]].mean(axis=0)
        return mean

    embedded = []
    for session in sessions:
        nodes, alias = np.unique(session, return_inverse=True)
        edges = set(itertools.pairwise(alias.tolist()))
        hidden = of["item_embedding.weight"][nodes]
        for _ in range(step):
            before = mean_of_messages("incomming_conv", hidden, edges)
            back = {(v, u) for u, v in edges}
            after = mean_of_messages("outcomming_conv", hidden, back)
            both = np.concatenate([before, after], axis=-1)
            i_r, i_z, i_n = np.split(linear("gnncell.lin_ih", both), 3, axis=-1)
            h_r, h_z, h_n = np.split(linear("gnncell.lin_hh", hidden), 3, axis=-1)
            new = np.tanh(i_n + sigmoid(i_r + h_r) * h_n)
            z = sigmoid(i_z + h_z)
            hidden = (1 - z) * hidden + z * new
        clicks = hidden[alias]
        gate = sigmoid(linear("linear_one", clicks[-1:]) + linear("linear_two", clicks))
        whole = (linear("linear_three", gate) * clicks).sum(axis=0)
        both = np.concatenate([whole, clicks[-1]])
        embedded.append(linear("linear_transform", both))
    return np.stack(embedded)


@pytest.mark.parametrize("step", [1, 3])
def test_recbole_gnn_gives_the_same_numbers_both_ways(step):
    """Its cell has no b_iah and b_oah, and passes messages along edges."""
    rng = np.random.default_rng(5)
    made = {
        name: rng.uniform(-1, 1, array.shape).astype(np.float32)
        for name, array in params_to_torch(make_params(), "recbole_gnn").items()
    }
    sessions = [[1, 2, 3, 2, 4], [7], [5, 5], [9, 8, 9, 8, 10, 9], [3, 1, 3, 1]]
    item_seq = np.array([[*s, *[0] * (6 - len(s))] for s in sessions])
    lengths = np.array([*map(len, sessions)])
    ours = params_from_torch(made, "recbole_gnn")
    assert not ours["gnn"]["b_iah"].any()
    assert not ours["gnn"]["b_oah"].any()
    model = SRGNN(NUM_ITEMS, D, step=step)
    # From their weights `made`; and from ours, which have message biases.
    params = make_params()
    for weights, flax in [
        (made, ours),
        (params_to_torch(params, "recbole_gnn"), params),
    ]:
        expected = recbole_gnn_sessions(weights, sessions, step)
        flax = jax.device_put(flax)
        session = model.apply({"params": flax}, item_seq, lengths)
        np.testing.assert_allclose(session, expected, rtol=0, atol=2e-6)
        scores = model.apply(
            {"params": flax}, item_seq, lengths, method="full_sort_predict"
        )
        expected = expected @ weights["item_embedding.weight"].T
        np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], rtol=0, atol=2e-6)


def test_other_models_of_recbole_gnn_are_refused_by_what_they_add():
    weights = params_to_torch(make_params(), "recbole_gnn")
    # As its NISER has.
    weights["pos_embedding.weight"] = np.zeros((9, D), np.float32)
    with pytest.raises(UserError, match=r"RecBole-GNN's SR-GNN .*: pos_embedding.weig"):
        params_from_torch(weights, "recbole_gnn")


@pytest.mark.parametrize("source", ["recbole", "recbole_gnn", "original"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.module."])
def test_names_of_a_wrapped_module(tmp_path, source, prefix):
    weights = params_to_torch(make_params(), source)
    wrapped = {prefix + name: array for name, array in weights.items()}
    expected = params_from_torch(weights, source)
    assert_equal_trees(params_from_torch(wrapped, source), expected)
    path = write_pth(tmp_path / "a.pth", {"state_dict": tensors(wrapped)})
    checkpoint = load_torch_checkpoint(path)
    assert checkpoint.source == source
    assert list(checkpoint) == list(weights)
    # If only some names have the prefix, it is another model.
    wrapped["ema.decay"] = np.zeros(1, np.float32)
    with pytest.raises(UserError, match=rf"unknown: {prefix}.*ema.decay"):
        params_from_torch(wrapped, source)


def test_a_prefix_without_end_is_dropped_at_once(tmp_path):
    path = write_pth(tmp_path / "a.pth", {"module." * 200_000 + "x": Tensor(TABLE)})
    with pytest.raises(UserError, match=r"no SR-GNN.* its 1 entries 'x'"):
        load_torch_checkpoint(path)


def test_torch_tensors_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    on_torch = {
        name: torch.nn.Parameter(torch.from_numpy(array))
        for name, array in WEIGHTS.items()
    }
    assert_equal_trees(params_from_torch(on_torch, "recbole"), make_params())
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in on_torch.items()}
    for leaf in jax.tree.leaves(params_from_torch(halves, "recbole")):
        assert leaf.dtype == np.float32


# --- Files


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_state_dict(tmp_path, dtype, order, protocol):
    params = make_params(dtype=dtype)
    weights = params_to_torch(params, "original")
    root = tensors(weights)
    path = write_pth(tmp_path / "weights.pth", root, order, protocol)
    checkpoint = load_torch_checkpoint(path)
    assert checkpoint.source == "original"
    assert checkpoint.config == {}
    assert list(checkpoint) == list(weights)
    assert_equal_trees(params_from_torch(checkpoint, checkpoint.source), params)


@pytest.mark.parametrize(
    ("source", "module"),
    [("recbole", "recbole.config.configurator"), ("recbole_gnn", "recbole_gnn.config")],
)
def test_recbole_checkpoint_with_its_config(tmp_path, source, module):
    """What RecBole's trainer saves: the config and the optimizer too."""
    weights = params_to_torch(make_params(), source)
    enum = Call(Global("recbole.utils.enum_type", "ModelType"), 2)
    config = {
        "model": "SRGNN",
        "step": 1,
        "topk": [10],
        "eval_args": {"mode": {"test": "full"}},
        "MODEL_TYPE": enum,
        "device": Call(Global("torch", "device"), "cpu"),
        "alpha": float("inf"),
    }
    root = {
        "config": Call(
            Global(module, "Config"),
            state={
                "yaml_loader": Global("yaml.loader", "FullLoader"),
                "final_config_dict": config,
            },
        ),
        "epoch": 3,
        "best_valid_score": Call(
            Global("numpy._core.multiarray", "scalar"),
            Call(Global("numpy", "dtype"), "f8", False, True, state=(3, "<", None)),
            b"\0" * 8,
        ),
        "state_dict": Call(
            Global("collections", "OrderedDict"), state={"_metadata": {"": {}}}
        ),
        "optimizer": {
            "state": {0: {"exp_avg": Tensor(np.ones(3, np.int64))}},
            "param_groups": [{"betas": (0.9, 0.999), "params": [0, 1]}],
        },
    }

    class Ordered(Writer):
        def save(self, obj, save_persistent_id=True):
            super().save(obj, save_persistent_id)
            if obj is root["state_dict"]:
                self._batch_setitems(tensors(weights).items())

    file = io.BytesIO()
    writer = Ordered(file)
    writer.dump(root)
    path = tmp_path / "SRGNN.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("SRGNN/data.pkl", file.getvalue())
        for key, raw in writer.storages.items():
            archive.writestr(f"SRGNN/data/{key}", raw)
    checkpoint = load_torch_checkpoint(path)
    assert checkpoint.source == source
    assert checkpoint.config == {"model": "SRGNN", "step": 1, "alpha": float("inf")}
    expected = params_from_torch(weights, source)
    assert_equal_trees(params_from_torch(checkpoint, source), expected)


def test_half_precision_and_views_into_one_storage(tmp_path):
    base = np.arange(24, dtype=np.float32)
    root = {
        "item_embedding.weight": Tensor(base.reshape(6, 4).T[1:], base),
        "half": Tensor(np.float16([1.5, -2.0])),
        "bfloat": Tensor(np.array([1.5, -2.0], ml_dtypes.bfloat16)),
        "scalar": Tensor(np.float64(7.5)[...]),
        "none": Tensor(np.zeros((0, 3), np.float32)),
        "parameter": Call(
            PARAMETER,
            Tensor(np.float32([3.0])),
            True,
            None,
        ),
    }
    weights = load_torch_checkpoint(write_pth(tmp_path / "a.pth", root))
    expected = base.reshape(6, 4).T[1:]
    np.testing.assert_array_equal(weights["item_embedding.weight"], expected)
    for name in ("half", "bfloat"):
        assert weights[name].dtype == np.float32
        assert weights[name].tolist() == [1.5, -2.0]
    assert weights["scalar"] == 7.5
    assert weights["none"].shape == (0, 3)
    assert weights["parameter"].tolist() == [3.0]


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
)
def test_safetensors(tmp_path, dtype):
    weights = {
        name: array.astype(dtype)
        for name, array in params_to_torch(make_params(), "recbole").items()
    }
    path = write_safetensors(tmp_path / "a.safetensors", weights)
    checkpoint = load_torch_checkpoint(path)
    assert checkpoint.source == "recbole"
    expected = np.float64 if dtype == np.float64 else np.float32
    for name, array in weights.items():
        assert checkpoint[name].dtype == expected
        np.testing.assert_array_equal(checkpoint[name], array)


def test_files_that_torch_and_safetensors_write(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    state_dict = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    saved = {
        "plain.pth": lambda path: torch.save(state_dict, path),
        "nested.pth": lambda path: torch.save(
            {"state_dict": OrderedDict(state_dict), "config": {"step": 2}},
            path,
            pickle_protocol=4,
        ),
        "a.safetensors": lambda path: save_file(state_dict, path),
    }
    for name, save in saved.items():
        save(tmp_path / name)
        checkpoint = load_torch_checkpoint(tmp_path / name)
        assert checkpoint.config == ({"step": 2} if name == "nested.pth" else {})
        assert_equal_trees(params_from_torch(checkpoint, "recbole"), make_params())
    torch.save(state_dict, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"old.pth: this is the format.*save it again"):
        load_torch_checkpoint(tmp_path / "old.pth")


def test_neither_torch_nor_recbole_is_needed(tmp_path):
    path = write_pth(tmp_path / "a.pth", tensors(WEIGHTS))
    code = (
        "import sys; sys.modules.update(torch=None, recbole=None, tensorflow=None);"
        "from srgnn_jax.convert import load_torch_checkpoint, params_from_torch;"
        f"checkpoint = load_torch_checkpoint({str(path)!r});"
        "print(*params_from_torch(checkpoint, checkpoint.source))"
    )
    repo = Path(__file__).parents[1]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout == "gnn item_embedding readout\n"


# --- Hostile and broken files


HOSTILE_NAMES = """
os.system posix.system nt.system subprocess.Popen builtins.eval builtins.exec
builtins.getattr builtins.print __builtin__.open io.open sys.exit shutil.rmtree
importlib.import_module socket.create_connection runpy.run_path webbrowser.open
torch.load torch.hub.load numpy.load collections.namedtuple pathlib:Path.unlink
recbole.utils:os.system recbole.utils:Config.__init__.__globals__
recbole.quick_start.run_recbole recbole_evil.Config recbole_gnn_evil.Config
__main__.SessionGraph
"""


@pytest.mark.parametrize("where", ["config", "state_dict", "root"])
def test_hostile_names_are_refused(tmp_path, where):
    ran = tmp_path / "ran"
    for full in HOSTILE_NAMES.split():
        module, _, name = full.partition(":") if ":" in full else full.rpartition(".")
        payload = Call(Global(module, name), f"touch {ran}")
        weights = tensors(WEIGHTS)
        root = {
            "config": {"config": payload, "state_dict": weights},
            "state_dict": {"state_dict": {**weights, "evil": payload}},
            "root": payload,
        }[where]
        path = write_pth(tmp_path / "evil.pth", root)
        expected = rf"evil.pth: its pickle asks for '{re.escape(f'{module}.{name}')}'"
        with pytest.raises(UserError, match=expected) as error:
            load_torch_checkpoint(path)
        assert "\n" not in str(error.value)
        assert not ran.exists()


def test_payload_of_an_ordinary_exploit_does_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Exploit:
        def __reduce__(self):
            return open, (str(ran), "w")

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"state_dict": {}, "config": Exploit()}, protocol)
        path = write_pth(tmp_path / "evil.pth", {}, data=data)
        with pytest.raises(UserError, match=r"asks for '_?io.open'"):
            load_torch_checkpoint(path)
        assert not ran.exists()


def laughs(levels: int) -> list:
    """Returns lists in lists that are small in memory but 10**levels long if copied."""
    value: list = ["ha"] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


def nested(levels: int) -> bytes:
    return b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (
            {"config": {"a": laughs(20)}, "state_dict": {"a": Tensor(TABLE)}},
            "no SR-GNN",
        ),
        ([1, 2], "it holds a list instead of a state_dict"),
        ({}, "its state_dict is empty"),
        ({"state_dict": [Tensor(TABLE)]}, "its state_dict is empty or a list"),
        ({"a": Tensor(TABLE), "b": 3}, "these are not tensors: 'b'"),
        ({"a": Tensor(TABLE, shape=(4, 2))}, "does not fit its storage"),
        ({"a": Tensor(TABLE, offset=1)}, "does not fit its storage"),
        ({"a": Tensor(TABLE, offset=-1)}, "does not fit its storage"),
        ({"a": Tensor(TABLE, strides=(-2, 1))}, "does not fit its storage"),
        # In bytes, the last of five is 2**64 away, which NumPy adds up to 0.
        ({"a": Tensor(TABLE, shape=(5,), strides=(1 << 60,))}, "does not fit"),
        ({"a": Tensor(TABLE, shape=(3,))}, r"shape \(3,\) does not fit its storage"),
        ({"a": Tensor(TABLE, shape=(10**9, 10**9), strides=(0, 0))}, "more than the f"),
        ({"a": Tensor(TABLE, shape=(10**9,) * 3, strides=(0,) * 3)}, "does not fit"),
        # Many tensors that repeat the numbers of one storage.
        (
            {f"a{n}": Tensor(TABLE, shape=(600,), strides=(0,)) for n in range(9)},
            "its tensors claim 21,600 bytes",
        ),
        ({"a": Tensor(TABLE, shape=(1 << 999, 1), strides=(0, 0))}, "does not fit"),
        # A list instead of a storage: NumPy would accept any object as an array.
        ({"a": Call(REBUILD, [1, 2], 0, (2,), (1,))}, "damaged"),
        ({"a": Call(REBUILD, Tensor(TABLE), 0, (2,), (1,))}, "damaged"),
        # A tensor has no `__setstate__`, unlike NumPy's arrays.
        (
            {"a": Call(PARAMETER, Tensor(TABLE), state=(1, (9**9,), None, False, b""))},
            "damaged",
        ),
        (in_storage(size=9), "is shorter than its tensor"),
        (in_storage(key="7"), "storage '7' is missing"),
        (in_storage(key="../data.pkl"), "is missing"),
        (in_storage(kind="device"), "is of type torch.device"),
    ],
)
def test_absurd_contents_are_refused(tmp_path, root, message):
    path = write_pth(tmp_path / "a.pth", root)
    with pytest.raises(UserError, match=message) as error:
        load_torch_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}q\x00(h\x05u.", "damaged"),
        # A memo index for which the unpickler in C would take 32 GB.
        (b"\x80\x02}r\xff\xff\xff\xff.", "its state_dict is empty"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"(ios\nsystem\n.", "the instruction INST"),
        # An unknown escape in text, of which Python warns.
        (b"\x80\x02c\\System\nx\n.", "its pickle asks for"),
        (b"\x80\x04\x8e" + (1 << 50).to_bytes(8, "little") + b"x.", "damaged"),
        (nested(20_000), "it holds a list instead of a state_dict"),
        (b"\x80\x02}X\x01\x00\x00\x00a" + nested(20_000)[2:-1] + b"s.", "not tensors"),
        (b"\x80\x02" + b"N0" * 10 + b".", "the instruction POP"),
        (b"\x80\x02" + b"N" * 50_000 + b".", r"larger than 50,000 bytes; if you"),
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "BYTEARRAY8"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b"x.", "damaged"),
        (b"\x80\x04\x95" + b"\xff" * 8 + b"}.", "damaged"),
        # Values that take neither calls, nor states, nor items.
        (b"\x80\x02X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x85R.", "damaged"),
        (b"\x80\x02]}b}X\x01\x00\x00\x00aK\x01sb.", "damaged"),
        (b"\x80\x02)K\x00K\x01s.", "damaged"),
        # A key whose hash, computed level by level, would take 2**60 steps.
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.", "is empty"),
    ],
)
def test_broken_pickles_are_refused(tmp_path, data, message, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_PICKLE_BYTES", 50_000)
    path = write_pth(tmp_path / "a.pth", {}, data=data)
    with pytest.raises(UserError, match=message):
        load_torch_checkpoint(path)


def test_archives_that_torch_does_not_write_are_refused(tmp_path):
    root = {"item_embedding.weight": Tensor(TABLE)}
    path = tmp_path / "a.pth"
    write_pth(path, root, members={"../../etc/cron": b""})
    with pytest.raises(UserError, match="outside its folder"):
        load_torch_checkpoint(path)
    write_pth(path, root, members={"other/data.pkl": b""})
    with pytest.raises(UserError, match=r"2 data.pkl files"):
        load_torch_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", b"N" * 1000)
    with pytest.raises(UserError, match="compressed"):
        load_torch_checkpoint(path)
    write_pth(path, root)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(TABLE.tobytes(), b"\1" * TABLE.nbytes))
    with pytest.raises(UserError, match=r"damaged \(Bad CRC"):
        load_torch_checkpoint(path)
    # A file name that claims to be 255 bytes long: the zip module quotes all of it.
    path.write_bytes(whole[:26] + b"\xff\0" + whole[28:])
    with pytest.raises(UserError, match=r"damaged \(File name") as error:
        load_torch_checkpoint(path)
    assert len(str(error.value)) < len(str(path)) + 150


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]}},
            "damaged",
        ),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "damaged"),
        ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, "damaged"),
        ({"a": 3}, "damaged"),
        ({"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}, "variant `F9`"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}, "shape"),
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}, "shape"),
        # A type that the format has but NumPy does not.
        (
            {
                "item_embedding.weight": {
                    "dtype": "F8_E5M2",
                    "shape": [24],
                    "data_offsets": [0, 24],
                }
            },
            "a type is not supported",
        ),
    ],
)
def test_broken_safetensors_are_refused(tmp_path, header, message):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"item_embedding.weight": TABLE}, header)
    with pytest.raises(UserError, match=message):
        load_torch_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a .pth file"),
        (b"<html>no such file</html>", "neither a .pth file"),
        (b"\x80\x02}.", "bare pickle"),
        (b"PK\x03\x04" + b"\0" * 50, "damaged"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header too large"),
        (struct.pack("<Q", 9) + b"{" * 9, "invalid JSON"),
        (struct.pack("<Q", 2) + b"{}", "no tensors"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_torch_checkpoint(path)


def test_missing_file_and_other_model(tmp_path):
    with pytest.raises(UserError, match=r"none.pth: cannot be read \(No such file"):
        load_torch_checkpoint(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        load_torch_checkpoint(tmp_path)
    path = write_pth(tmp_path / "a.pth", {"conv.weight": Tensor(TABLE)})
    with pytest.raises(UserError, match=r"a.pth: holds no SR-GNN.*'conv.weight'"):
        load_torch_checkpoint(path)


def test_damage_anywhere_is_a_clear_error(tmp_path):
    root = {"config": {"topk": [10]}, "state_dict": tensors(WEIGHTS)}
    pth = write_pth(tmp_path / "whole.pth", root).read_bytes()
    safe = write_safetensors(tmp_path / "whole.st", WEIGHTS).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pth"
    refused = 0
    for whole in (pth, safe):
        for _ in range(150):
            damaged = bytearray(whole)
            if rng.random() < 0.3:
                del damaged[rng.integers(len(whole)) :]
            else:
                for at in rng.integers(len(whole), size=3):
                    damaged[at] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                load_torch_checkpoint(path)
            except UserError:
                refused += 1
    assert refused > 100
