"""Reading sharded checkpoints without running code: torch's own reader unpickles whatever they hold."""

import io
import os
import pickle
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from typing_extensions import override

from llm_lightning.checkpoints.checksums import check_stream, once
from llm_lightning.errors import UserError
from llm_lightning_safety.seals import checksum

Kind = TypeVar("Kind")

NAMES = frozenset(
    [
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )),
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.serialization._get_layout",
        *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
        "builtins.getattr",  # how some versions of Python write the member of an enumeration
    ]
)  # fmt: skip
"""What the `.metadata` of a checkpoint names, as torch writes it."""
METADATA_CHECKSUM = "metadata_checksum"
"""The key of its checksum, which torch notes for the parts alone, among what is saved beside them."""


def load_parts(state: dict[str, Any], reader: "PartsReader") -> None:
    """Load a sharded checkpoint into `state` in place, on all ranks; nothing in it is run.

    Raises:
        UserError: a part is missing, damaged, or holds more than tensors and plain values.
    """
    with _in_words(reader):
        dcp.load(state, storage_reader=reader, planner=_PlainValues())


class PartsReader(dcp.FileSystemReader):
    """Reads `.metadata` into blank records first, checks them, and makes torch's own of them.

    Args:
        path: the checkpoint.
        metadata_checksum: of `.metadata`; None where it is not known, as for those of earlier versions.
    """

    def __init__(self, path: Path, metadata_checksum: str | None = None) -> None:
        super().__init__(path)
        self.metadata_checksum = metadata_checksum
        self._metadata: Metadata | None = None

    def check(self, rank: int, num_ranks: int) -> None:
        """Look at this rank's share of the files, their lengths first: with as many ranks as wrote them, its own.

        Raises:
            UserError: one is missing, cut or changed.
        """
        places: dict[str, list[_StorageInfo]] = defaultdict(list)
        for place in self.read_metadata().storage_data.values():
            places[place.relative_path].append(place)
        share = sorted(places, key=lambda name: (len(name), name))[rank::num_ranks]
        folder = Path(self.path)
        for name in share:
            end = max(place.offset + place.length for place in places[name])
            there = (folder / name).stat().st_size if (folder / name).exists() else 0
            if there < end:
                raise UserError(f"its {name} has {there:,} bytes of {end:,}")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(self._check_place, (place for name in share for place in places[name])))

    def _check_place(self, place: _StorageInfo) -> None:
        with (Path(self.path) / place.relative_path).open("rb") as file:
            self._slice_file(file, place)

    @override
    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> IO[bytes]:
        # Of what this rank reads alone, where it is read: to look at all parts would take too long.
        part = io.BytesIO(super()._slice_file(file, sinfo).read())
        name = sinfo.relative_path
        once(Path(self.path) / name, lambda: check_stream(part, f"its {name}"), sinfo.offset)
        part.seek(0)
        return part

    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is where.

        Raises:
            UserError: `.metadata` is damaged, or names what no checkpoint of ours does.
        """
        if self._metadata is None:
            file = Path(self.path) / ".metadata"
            try:
                data = file.read_bytes()
                if self.metadata_checksum not in (None, checksum(data)):
                    raise ValueError("its checksum does not fit")
                self._metadata = _metadata_of(data)
            except Exception as error:  # of a damaged pickle anything can come
                raise UserError(f"ckpt_path={str(self.path)!r}: .metadata cannot be read safely: {error}") from error
            self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class _PlainValues(DefaultLoadPlanner):
    """Takes tensors and plain values from the parts; torch's own would unpickle the values."""

    @override
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            plain = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(f"its {name} is no plain value: {str(error).splitlines()[0]}") from error
        set_element(self.original_state_dict, self.mappings[name], plain)


@contextmanager
def _in_words(reader: PartsReader) -> Iterator[None]:
    try:
        yield
    except dcp.CheckpointException as error:
        first = cast(BaseException, next(iter(error.failures.values()))[0])
        why = str(first) if isinstance(first, UserError) else f"{type(first).__name__}: {first}"
        raise UserError(
            f"ckpt_path={str(reader.path)!r} cannot be read: {why}. Name another checkpoint by --ckpt_path, or start "
            "over with --resume false."
        ) from error


class _Record:
    """What stands in the pickle for an object: its arguments and its state, and no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Makes blank records of all but numbers and texts. The classes are new each time: a pickle can alter them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.kinds: dict[str, type[_Record]] = {}

    @override
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "torch.Size":
            return tuple
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if full not in NAMES:
            raise pickle.UnpicklingError(f"it names {full}, which has no place in a checkpoint")
        return self.kinds.setdefault(name, type(name, (_Record,), {}))


def _metadata_of(data: bytes) -> Metadata:
    unpickler = _Unpickler(io.BytesIO(data))
    fields = _fields(unpickler.load(), "Metadata")
    tensors = {_is(str, name): _storage(entry) for name, entry in fields["state_dict_metadata"].items()}
    places = dict(_place(index, info) for index, info in fields["storage_data"].items())
    return Metadata(tensors, storage_data=places)


def _storage(entry: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(entry, _Record) and type(entry).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _fields(entry, "TensorStorageMetadata")
    chunks = [
        ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"]))
        for chunk in (_fields(each, "ChunkStorageMetadata") for each in fields["chunks"])
    ]
    dtype = _is(torch.dtype, fields["properties"].state[0])
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(fields["size"]), chunks)


def _place(index: Any, info: Any) -> tuple[MetadataIndex, _StorageInfo]:
    index, info = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
    offset, number = index.get("offset"), index.get("index")
    name = _is(str, info["relative_path"])
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"it names the file {name!r} outside of its folder")
    if info.get("transform_descriptors"):
        raise ValueError("its parts are transformed, which ours never are")
    where = _StorageInfo(name, _is(int, info["offset"]), _is(int, info["length"]))
    return MetadataIndex(_is(str, index["fqn"]), None if offset is None else _size(offset), number), where


def _fields(record: Any, kind: str) -> dict[str, Any]:
    if type(record).__name__ != kind or not isinstance(record, _Record):
        raise TypeError(f"there is a {type(record).__name__} in place of a {kind}")
    # An object without fields of its own has no state.
    return _is(dict, getattr(record, "state", {}))


def _size(value: Any) -> torch.Size:
    return torch.Size([_is(int, number) for number in _is(tuple, value)])


def _is(kind: type[Kind], value: Any) -> Kind:
    if not isinstance(value, kind):
        raise TypeError(f"there is a {type(value).__name__} in place of a {kind.__name__}")
    return value
