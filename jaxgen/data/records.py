"""Random access to serialised records in the three file formats TFDS writes.

Nothing here imports TensorFlow. Record i of a split is found by shard and position; a
reader for one shard is a closure from positions to bytes. array_record files carry
checksums and a PNG in any file checks itself, but the checksums of TFRecord are not
verified (in Python that would cost more than decoding): a flipped label goes unnoticed.
"""

import collections
import functools
import os
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxgen._checks import UserError
from jaxgen.data import blocks, cache

# Positions within one shard -> the serialised records, in the same order.
ReadShard = Callable[[Sequence[int]], list[bytes]]

_HEADER = struct.Struct(
    "<Q4x"
)  # TFRecord: length, its CRC; then data, then 4 bytes CRC
_ROW_GROUPS_KEPT = 4


class CorruptRecordError(Exception):
    """A record whose bytes cannot be read.

    Args:
        index: Its number within the shard, or within the split where so re-raised.
        reason: One line.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(f"record {index}: {reason}")
        self.index = index
        self.reason = reason


class ShardedRecords:
    """The records of one split, in order of its shards.

    Args:
        lengths: Number of records in each shard.
        opener: Shard number -> its reader; called when a shard is first needed.
    """

    def __init__(self, lengths: Sequence[int], opener: Callable[[int], ReadShard]):
        self._ends = np.cumsum(np.asarray(lengths, np.int64))
        self._starts = self._ends - np.asarray(lengths, np.int64)
        self._opener = opener
        self._readers: dict[int, ReadShard] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records at `indices`, in that order; safe from several threads."""
        numbers = np.asarray(indices, np.int64)
        shards = np.searchsorted(self._ends, numbers, side="right")
        records: list[bytes] = [b""] * len(numbers)
        for shard in np.unique(shards):
            rows = np.flatnonzero(shards == shard)
            start = int(self._starts[shard])
            try:
                found = self._reader(int(shard))((numbers[rows] - start).tolist())
            except CorruptRecordError as error:
                raise CorruptRecordError(start + error.index, error.reason) from error
            for row, record in zip(rows, found, strict=True):
                records[row] = record
        return records

    def _reader(self, shard: int) -> ReadShard:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = self._opener(shard)
            return self._readers[shard]


def open_records(
    file_format: str, paths: Sequence[Path], lengths: Sequence[int]
) -> ShardedRecords:
    """Opens the shards of one split.

    Args:
        file_format: "array_record", "parquet" or "tfrecord".
        paths: One file for each shard.
        lengths: How many records each is said to hold.

    Raises:
        UserError: for another format, a missing shard, or one of another length.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"prepared set: {missing[0]} is missing ({len(missing)} of {len(paths)} "
            "shards are), expected every file that dataset_info.json names; copy or "
            "prepare the set again."
        )
    if file_format == "tfrecord":
        index = _tfrecord_index(paths)
        for path, spans, length in zip(paths, index, lengths, strict=True):
            _check_length(path, len(spans), length)
        return ShardedRecords(lengths, lambda i: _tfrecord_reader(paths[i], index[i]))
    openers = {"array_record": _open_array_record, "parquet": _open_parquet}
    if file_format not in openers:
        raise UserError(
            f"prepared set: file format {file_format!r} of {paths[0].parent} cannot be "
            "read without TensorFlow, expected array_record, parquet or tfrecord; "
            "prepare the set again with file_format='array_record'."
        )
    opener = openers[file_format]
    return ShardedRecords(lengths, lambda i: opener(paths[i], lengths[i]))


def _check_length(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"prepared set: {path} holds {found} records, expected {expected} as its "
            "dataset_info.json says; prepare the set again with "
            "file_format='array_record' (TFDS 4.9.10 loses records in parquet)."
        )


def _open_array_record(path: Path, length: int) -> ReadShard:
    from array_record.python import (
        array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  compiled
    )

    try:
        reader = array_record_module.ArrayRecordReader(
            str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32_768
        )
        found = reader.num_records()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    _check_length(path, found, length)

    def read(positions: Sequence[int]) -> list[bytes]:
        try:
            return reader.read(list(positions))
        except RuntimeError:
            return [_read_one(position) for position in positions]

    def _read_one(position: int) -> bytes:
        try:
            return reader.read([position])[0]
        except RuntimeError as error:
            raise CorruptRecordError(position, str(error)) from error

    return read


def _open_parquet(path: Path, length: int) -> ReadShard:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error
    _check_length(path, file.metadata.num_rows, length)
    groups = range(file.metadata.num_row_groups)
    ends = np.cumsum([file.metadata.row_group(g).num_rows for g in groups])
    kept: collections.OrderedDict[int, list[bytes]] = collections.OrderedDict()
    lock = threading.Lock()  # a ParquetFile must not be read by two threads at once

    def read_group(group: int, position: int) -> list[bytes]:
        if group not in kept:
            try:
                kept[group] = file.read_row_group(group).column(0).to_pylist()
            except (OSError, pyarrow.ArrowException) as error:
                raise CorruptRecordError(position, str(error)) from error
            if len(kept) > _ROW_GROUPS_KEPT:
                kept.popitem(last=False)
        return kept[group]

    def read(positions: Sequence[int]) -> list[bytes]:
        records = []
        with lock:
            for position in positions:
                group = int(np.searchsorted(ends, position, side="right"))
                rows = read_group(group, position)
                first = int(ends[group]) - len(rows)
                records.append(rows[position - first])
        return records

    return read


def _tfrecord_index(paths: Sequence[Path]) -> list[np.ndarray]:
    """For each shard int64 `[records, 2]`: where the data start, and how long."""
    stats = [(str(path), *_size_and_time(path)) for path in paths]
    key = cache.make_key(kind="tfrecord index", files=stats)
    hit = cache.load(key)
    if hit is not None and len(hit[0]) == len(paths):
        return [hit[0][f"shard_{i}"] for i in range(len(paths))]
    index = list(blocks.map_threads(_index_shard, paths))
    cache.store(key, {f"shard_{i}": spans for i, spans in enumerate(index)}, {})
    return index


def _index_shard(path: Path) -> np.ndarray:
    spans = []
    with _open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            header = os.pread(file.fileno(), _HEADER.size, offset)
            length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
            if offset + _HEADER.size + length + 4 > size:
                raise UserError(
                    f"prepared set: record {len(spans)} of {path} is cut off or corrupt"
                    f" (at byte {offset}), expected a whole TFRecord file; copy or "
                    "prepare the set again."
                )
            spans.append((offset + _HEADER.size, length))
            offset += _HEADER.size + length + 4
    return np.asarray(spans, np.int64).reshape(-1, 2)


def _tfrecord_reader(path: Path, spans: np.ndarray) -> ReadShard:
    def read(positions: Sequence[int]) -> list[bytes]:
        with _open_file(path) as file:
            descriptor = file.fileno()
            places = [(int(spans[p, 1]), int(spans[p, 0])) for p in positions]
            return [os.pread(descriptor, length, start) for length, start in places]

    return read


_open_file = functools.partial(open, mode="rb", buffering=0)


def _size_and_time(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"prepared set: {path} cannot be opened ({reason}), expected a whole "
        "file that you may read; check its permissions, copy or prepare it again."
    )
