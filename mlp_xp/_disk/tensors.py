"""Reader of safetensors files. It reads them and does not map them, as the library does.

A mapped file that becomes shorter meanwhile, as one that is copied over in its place, ends the process with a
signal, which no program can catch.
"""

from __future__ import annotations

import math
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mlp_xp._arrays import HostArray
from mlp_xp._validation import lookup

if TYPE_CHECKING:
    from pathlib import Path

MAX_HEADER_BYTES = 2**26
"""Maximum size of a file's header, which is read into memory as a whole before it can be checked."""

DTYPES = {
    **{"float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL"},
    **{"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"},
}
"""Dtypes of arrays that can be in a file, and their names in safetensors."""

DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class TensorFile:
    """An open safetensors file.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    metadata : dict of str
    tensors : dict
        For each tensor what the header says of it: "dtype", "shape", "data_offsets".

    Raises
    ------
    ValueError
        If it is no such file.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise ValueError(f"it is {'a folder' if path.is_dir() else 'no file'}")
        self._file = path.open("rb")
        try:
            self._start, self.tensors = self._read_header()
            self.metadata = self.tensors.pop("__metadata__", {})
            if not (isinstance(self.metadata, dict) and all(map(_is_text, self.metadata.values()))):
                raise ValueError("the metadata in its header must be texts")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read_header(self) -> tuple[int, dict[str, Any]]:
        """Return where the data begin, and the header."""
        from mlp_xp._disk.json_codec import load_json

        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little") if size >= 8 else 0
        if size < 8 or length > size - 8:
            raise ValueError(
                f"its header claims {length} bytes, but the file has {size}: cut short, or no safetensors"
            )
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"its header must be {MAX_HEADER_BYTES} bytes long at most, got {length}")
        self._n_data_bytes = size - 8 - length
        try:
            header = load_json(self._file.read(length).decode())
        except ValueError as error:
            raise ValueError(f"its header is not valid JSON ({error})") from error
        if not isinstance(header, dict):
            raise ValueError("its header must be a JSON object")
        return 8 + length, header

    def check(self, known: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        """Check the tensors, and that there is nothing else in the file.

        Parameters
        ----------
        known : dict of tuple
            The dtypes and shapes that some of them must have.

        Raises
        ------
        ValueError
            The message names the tensor that differs.
        """
        begins = {}
        for name in {**known, **self.tensors}:
            entry = self.tensors[name]
            if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
                raise ValueError(f"{name!r} must have dtype, shape and data_offsets in the header")
            got, offsets = entry["dtype"], entry["data_offsets"]
            found = tuple(entry["shape"]) if isinstance(entry["shape"], list) else entry["shape"]
            if name in known and (got, found) != (DTYPES[known[name][0]], known[name][1]):
                wanted, shape = DTYPES[known[name][0]], known[name][1]
                raise ValueError(f"{name!r} must be {wanted} of shape {shape}, got {got} of shape {found}")
            item = np.dtype(lookup("dtype", got, DTYPES_BY_NAME)).itemsize
            if not isinstance(found, tuple) or not all(type(size) is int and size >= 0 for size in found):
                raise ValueError(f"{name!r} must have a shape of integers, got {entry['shape']!r:.60}")
            shape = found
            if not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
                raise ValueError(f"{name!r} must have two integers as data_offsets, got {offsets}")
            if offsets[1] - offsets[0] != math.prod(shape) * item:
                raise ValueError(f"{name!r} must have data_offsets of its size, got {offsets}")
            if offsets[1] > offsets[0]:  # several without elements may begin at the same place
                if offsets[0] in begins:
                    raise ValueError("its tensors must fill the file, one after the other")
                begins[offsets[0]] = offsets[1]
        end = 0
        while end in begins:  # tensors follow each other without gaps
            end = begins.pop(end)
        if begins or end != self._n_data_bytes:
            raise ValueError("its tensors must fill the file, one after the other")

    def read(self, name: str) -> HostArray:
        """Return a tensor, after `check`."""
        dtype = np.dtype(DTYPES_BY_NAME[self.tensors[name]["dtype"]])
        array = np.empty(self.tensors[name]["shape"], dtype=dtype.newbyteorder("<"))
        self._file.seek(self._start + self.tensors[name]["data_offsets"][0])
        if self._file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
            raise ValueError("it became shorter while it was read")
        return array.astype(dtype, copy=False)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
