"""Writes files in the formats of torch and safetensors, without either of them.

The files can hold things that no honest file does.
"""

import io
import json
import pickle
import struct
import zipfile

import numpy as np


class Global:
    """Pickles as nothing but the name of a class or function."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a `Global`, after which a state may be set."""

    def __init__(self, kind, *arguments, state=None):
        self.kind, self.arguments, self.state = kind, arguments, state


class Tensor:
    """Pickles as torch's tensors do, in its own storage or in a given one."""

    def __init__(self, array, storage=None, **changes):
        self.array, self.storage, self.changes = array, storage, changes


KINDS = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


class Writer(pickle._Pickler):
    """Python's own pickler, extended to write names that cannot be imported here."""

    def __init__(self, file, order="<", protocol=2):
        super().__init__(file, protocol)
        self.order, self.storages = order, {}

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.kind)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Tensor):
            self.save_tensor(obj)
        else:
            super().save(obj, save_persistent_id)

    def save_tensor(self, tensor):
        array, base = tensor.array, tensor.storage
        base = array if base is None else base
        key = str(len(self.storages))
        stored = base.astype(base.dtype.newbyteorder(self.order))
        self.storages[key] = stored.tobytes()
        kind = Global("torch", KINDS[base.dtype.name])
        offset = (array.ctypes.data - base.ctypes.data) // base.itemsize
        strides = tuple(step // base.itemsize for step in array.strides)
        fields = {
            "identity": ("storage", kind, key, "cpu", base.size),
            "offset": offset,
            "shape": array.shape,
            "strides": strides,
        } | tensor.changes
        self.save(REBUILD)
        self.write(pickle.MARK)
        self.save(fields["identity"])
        self.write(pickle.BINPERSID)
        for field in (fields["offset"], fields["shape"], fields["strides"], False):
            self.save(field)
        self.save(Call(Global("collections", "OrderedDict")))
        self.write(pickle.TUPLE)
        self.write(pickle.REDUCE)


def write_pth(path, root, order="<", protocol=2, data=None, members=None):
    """Writes a zip like torch's; `data` replaces the pickle, `members` adds files."""
    file = io.BytesIO()
    writer = Writer(file, order, protocol)
    writer.dump(root)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.pkl", file.getvalue() if data is None else data)
        archive.writestr("weights/byteorder", "little" if order == "<" else "big")
        for key, raw in writer.storages.items():
            archive.writestr(f"weights/data/{key}", raw)
        for name, raw in (members or {}).items():
            archive.writestr(name, raw)
    return path


def tensors(state_dict):
    return {name: Tensor(np.ascontiguousarray(a)) for name, a in state_dict.items()}


def write_safetensors(path, arrays, header=None):
    entries, data = {"__metadata__": {"format": "pt"}}, b""
    names = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16"}
    for name, array in arrays.items():
        raw = array.tobytes()
        entries[name] = {
            "dtype": names[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps({**entries, **(header or {})}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


TABLE = np.zeros((3, 2), np.float32)


def in_storage(key="0", size=6, kind="FloatStorage"):
    identity = ("storage", Global("torch", kind), key, "cpu", size)
    return {"a": Tensor(TABLE, identity=identity)}
