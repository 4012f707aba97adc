"""Parquet files with checksums: a reader sees every byte as it was written, or gets one line. Imports no torch.

The checksums of Parquet's pages leave out headers and footer, and not every reader looks at them. So the footer also holds a
CRC-32 over the whole file, its own digits taken as zeros, and which file it is: one that stands in another's place is
noticed too. Files without them, from before, are held to the checksums of their pages.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.columns import SCHEMA
from training.whole_files import DamagedFile, StoreError, Unreadable, unreadable, writing

CRC_MARK, NO_CRC = b"crc32 over this file: ", b"00000000"
_RUN = re.compile(r".+-[0-9a-f]{10}")  # a folder named by Plateau, and by nobody else


class OtherVersion(StoreError):
    """A file of another version of Plateau: not damaged, and not to be touched."""


def write_table(
    path: Path,
    table: pa.Table,
    *,
    place: str,
    text: Sequence[str] = (),
    level: int = 3,
    also: Mapping[str, str] | None = None,
) -> None:
    """Write one zstd Parquet file atomically, the bytes of numbers sorted by their weight, which halves its size.

    Args:
        path: the file.
        table: its rows.
        place: the path's last parts, by which it is known again.
        text: columns whose values repeat.
        level: of zstd.
        also: more to be kept in the footer.
    """
    dtypes = {field.name: field.type for field in table.schema}
    encoding = {name: "BYTE_STREAM_SPLIT" for name, dtype in dtypes.items() if dtype == pa.float32()}
    encoding |= {name: "DELTA_BINARY_PACKED" for name, dtype in dtypes.items() if dtype == pa.int32()}
    about = {"plateau_file": place, **(also or {}), "plateau_crc32": (CRC_MARK + NO_CRC).decode()}
    encoding = {name: kind for name, kind in encoding.items() if name not in text}
    with writing(path) as aside:
        with pq.ParquetWriter(
            aside, table.schema, compression="zstd", compression_level=level, use_dictionary=list(text),
            column_encoding=encoding, write_page_checksum=True,
        ) as writer:  # fmt: skip
            writer.write_table(table)
            writer.add_key_value_metadata(about)
        _seal(aside)


def _seal(path: Path) -> None:
    """Put the checksum of a file into its footer."""
    data = path.read_bytes()
    at = data.rindex(CRC_MARK) + len(CRC_MARK)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"%08x" % _checksum(data, at))


def _checksum(data: bytes, at: int) -> int:
    """CRC-32 over all bytes, the eight digits from `at` on taken as zeros."""
    whole = memoryview(data)
    return zlib.crc32(whole[at + len(NO_CRC) :], zlib.crc32(NO_CRC, zlib.crc32(whole[:at])))


def read_table(path: Path, columns: Sequence[str] | None = None, form: Mapping[str, str] | None = None) -> pa.Table:
    """Read one Parquet file.

    Args:
        path: the file.
        columns: those that are wanted, of which older files may lack some; None for all.
        form: what a column of a name holds, "text", "whole", "float" or "number" (either); "nothing"
            passes for each of them. It must be there, and without gaps, if the name ends with "!". With "*" there are no other
            columns. None for anything.

    Raises:
        DamagedFile: if the file is damaged or is another one; the message names it.
        OtherVersion: if it was written in another schema version.
        Unreadable: if this user, or this machine now, cannot read it.
    """
    with _naming(path):
        file, _ = _open(path, form or {})
        known = file.schema_arrow.names
        table = file.read(columns=known if columns is None else [name for name in columns if name in known])
        _check_gaps(path, table, form or {})
        return table


def check_table(path: Path, form: Mapping[str, str] | None = None) -> None:
    """Read one Parquet file and forget it; one that bears a checksum is not decoded.

    Raises:
        DamagedFile, OtherVersion: as `read_table` does.
    """
    with _naming(path):
        file, sealed = _open(path, form or {})
        if not sealed:
            _check_gaps(path, file.read(), form or {})


def read_range(path: Path, column: str = "step") -> tuple[int, int] | None:
    """The lowest and highest value of a column, from the file's footer; None where there are no rows, or it does not tell.

    Raises:
        DamagedFile: if the file is damaged or gone; the message names it.
    """
    with _naming(path):
        about = pq.read_metadata(path)
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        columns = [group.column(at) for group in groups for at in range(group.num_columns)]
        found = [each.statistics for each in columns if each.path_in_schema == column and each.statistics is not None]
        known = [each for each in found if each.has_min_max]
        return (min(each.min for each in known), max(each.max for each in known)) if known else None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what Arrow and the system say of a file into one line that names it."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:  # Arrow's own of bytes that it cannot decode have no number
        if error.errno and isinstance(other := unreadable(error, path), Unreadable):
            raise other from None
        raise DamagedFile(f"damaged file {path}: {(str(error).splitlines() or ['?'])[0]}") from None
    except (pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        raise DamagedFile(f"damaged file {path}: {(str(error).splitlines() or ['?'])[0]}") from None


def _open(path: Path, form: Mapping[str, str]) -> tuple[pq.ParquetFile, bool]:
    """A file whose bytes and columns are as they should be, and whether it bears a checksum."""
    data = path.read_bytes()
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    sealed = _check_bytes(path, data)
    check_version(file.schema_arrow, path)
    _check_place(path, (file.metadata.metadata or {}).get(b"plateau_file", b"").decode())
    _check_columns(path, file.schema_arrow, form)
    return file, sealed


def _check_bytes(path: Path, data: bytes) -> bool:
    """Hold a file to its checksum; says whether it bears one."""
    at = data.rfind(CRC_MARK) + len(CRC_MARK)
    sealed = at >= len(CRC_MARK)
    if sealed and data[at : at + len(NO_CRC)] != b"%08x" % _checksum(data, at):
        raise DamagedFile(f"damaged file {path}: its checksum is another than when it was written")
    return sealed


def _check_place(path: Path, place: str) -> None:
    """Refuse a file that stands in another's place."""
    if stored := Path(place).parts:
        now = path.absolute().parts[-len(stored) :]
        if stored[1:] != now[1:] or is_moved(stored[0], now[0]):
            raise DamagedFile(f"damaged file {path}: it is {place}, which belongs elsewhere")


def is_moved(then: str, now: str) -> bool:
    """Whether two names are of different runs; a folder that bears no run's hash may be called anything."""
    return then != now and bool(_RUN.fullmatch(then) and _RUN.fullmatch(now))


def _check_columns(path: Path, found: pa.Schema, form: Mapping[str, str]) -> None:
    """Refuse columns that are not what their names say."""
    if len(set(found.names)) < len(found.names) or not all(name.isprintable() for name in found.names):
        raise DamagedFile(f"damaged file {path}: a column stands there twice, or has no name")
    known = {key.removesuffix("!") for key in form}
    if "*" in form and (unknown := [name for name in found.names if name not in known]):
        raise DamagedFile(f"damaged file {path}: it has a column {unknown[0]!r}, which is not of its table")
    for key, wanted in form.items():
        name = key.removesuffix("!")
        if name not in found.names:
            if key != name:
                raise DamagedFile(f"damaged file {path}: it has no column {name!r}")
        elif kind_of(found.field(name).type) not in {"number": ("float", "whole")}.get(wanted, (wanted,)) + (
            "nothing",
        ):
            raise DamagedFile(
                f"damaged file {path}: column {name!r} holds {found.field(name).type}, not {WORDS[wanted]}"
            )


def _check_gaps(path: Path, table: pa.Table, form: Mapping[str, str]) -> None:
    """Refuse a column with a missing value where there must be one, and text that would not stay in its line."""
    for key, wanted in form.items():
        name = key.removesuffix("!")
        if name in table.column_names:
            if key != name and table[name].null_count:
                raise DamagedFile(f"damaged file {path}: column {name!r} has gaps")
            if wanted == "text" and not all(str(value).isprintable() for value in pc.unique(table[name]).to_pylist()):
                raise DamagedFile(f"damaged file {path}: column {name!r} holds text that is not one line")


WORDS = {"bytes": "bytes", "text": "text", "whole": "whole numbers", "number": "numbers", "float": "numbers"}


def kind_of(dtype: pa.DataType) -> str:
    """What a column of an Arrow type holds: "bytes", "text", "whole", "float", "nothing" or "other"."""
    inner = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    tests: dict[str, Any] = {
        "bytes": lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
        "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t),
        "whole": pa.types.is_integer,
        "float": pa.types.is_floating,
        "nothing": pa.types.is_null,
    }
    return next((name for name, test in tests.items() if test(inner)), "other")


def check_version(found: pa.Schema, path: Path) -> None:
    """Refuse a table of another schema version.

    Raises:
        OtherVersion: naming the file, its version and the known one.
    """
    version = (found.metadata or {}).get(b"plateau_schema", b"missing").decode()
    if version != str(SCHEMA):
        raise OtherVersion(f"{path}: unknown column version {version}; this Plateau reads version {SCHEMA}")
