"""Lists of labelled videos: folders of classes, CSV files, WebDataset shards. Listed once, decoded later."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from trecvit_kernels.training.clips import VideoBytes
from trecvit_kernels.training.tables import ConfigError

SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


@dataclass(frozen=True)
class Entry:
    """A video: a file of its own, or ``length`` bytes of a shard from ``offset`` on. label None: it has none."""

    path: str
    label: int | None
    name: str
    offset: int = 0
    length: int | None = None

    def open(self) -> Path | VideoBytes:
        """What the decoder reads. OSError if it is gone."""
        if self.length is None:
            return Path(self.path)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return VideoBytes(file.read(self.length), self.name)


def list_videos(key: str, source: str, where: str) -> tuple[list[Entry], list[str] | None]:
    """Entries of a source, in an order that depends on names alone, and the class names of a folder.

    Args:
        key: of the configuration, for messages. source: "folder", "csv" or "webdataset". where: what ``key`` says.

    Raises:
        ConfigError: no such folder or file, one that cannot be read, nothing in it, or labels that are no numbers.
    """
    classes = None
    if source == "folder":
        entries, classes = _folder(key, Path(where))
    elif source == "csv":
        entries = _csv(key, Path(where))
    else:
        entries = [entry for shard in _shards(key, where) for entry in _shard(key, shard)]
    if not entries:
        raise ConfigError(f"{key}: {where} must hold videos ({' '.join(SUFFIXES)}), found none")
    return entries, classes


def check_labels(key: str, entries: list[Entry], classes: int | None) -> None:
    """ConfigError unless every entry has a label, below ``classes`` if that is known."""
    for entry in entries:
        if entry.label is None:
            raise ConfigError(f"{key}: {entry.name} must have a label, found none")
        if entry.label < 0 or (classes is not None and entry.label >= classes):
            limit = "at least 0" if classes is None else f"between 0 and {classes - 1}"
            raise ConfigError(f"{key}: the label of {entry.name} must be {limit}, got {entry.label}")


def _check_folder(key: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"{key} must be a folder, got {folder}" + ("" if folder.exists() else ", which does not exist")
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{key}: {folder} cannot be read: permission denied")


def _folder(key: str, folder: Path) -> tuple[list[Entry], list[str]]:
    _check_folder(key, folder)
    classes = sorted(
        part.name for part in folder.iterdir() if part.is_dir() and not part.name.startswith(".")
    )
    entries = []
    for label, name in enumerate(classes):
        _check_folder(key, folder / name)
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                entries.append(Entry(str(path), label, str(path)))
    return entries, classes


def _csv(key: str, path: Path) -> list[Entry]:
    if not path.is_file():
        raise ConfigError(
            f"{key} must be a CSV file, got {path}" + ("" if path.exists() else ", which does not exist")
        )
    entries = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise ConfigError(
                    f"{key}: {path} must have a header with path and label, got {rows.fieldnames}"
                )
            for row in rows:
                video, label = row["path"], row.get("label")
                if not video:
                    raise ConfigError(f"{key}: {path}, line {rows.line_num}: path must be given, got none")
                if label is not None and not re.fullmatch(r"-?\d+", label.strip()):
                    raise ConfigError(
                        f"{key}: {path}, line {rows.line_num}: label must be a whole number, got {label!r}"
                    )
                whole = path.parent / video
                entries.append(Entry(str(whole), None if label is None else int(label), str(whole)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{key}: {path} cannot be read as CSV: {error}") from error
    missing = [entry.name for entry in entries if not os.path.isfile(entry.path)]
    if entries and len(missing) == len(
        entries
    ):  # single missing files are skipped and named like damaged ones
        raise ConfigError(
            f"{key}: none of the {len(entries)} videos of {path} exists, the first is {missing[0]}"
        )
    return entries


def _shards(key: str, where: str) -> list[str]:
    if os.path.isdir(where):
        _check_folder(key, Path(where))
        where = os.path.join(where, "*.tar")
    found: list[str] = []
    for pattern in _expand(where):
        found += sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    if not found:
        raise ConfigError(f"{key}: there must be shards at {where}, found none")
    for path in found:
        if not os.path.isfile(path):
            raise ConfigError(f"{key}: no such shard: {path}")
    return found


def _expand(pattern: str) -> list[str]:
    """``a-{000..012}.tar`` as its thirteen names."""
    if (match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)) is None:
        return [pattern]
    first, last = match.groups()
    numbers = (f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1))
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for number in numbers for name in _expand(f"{head}{number}{tail}")]


def _shard(key: str, path: str) -> list[Entry]:
    """Samples of a WebDataset shard: files of one name up to its first dot; ``.cls`` or ``.json`` holds the label.

    Only headers and labels are read. Knowing where each video lies, samples can be drawn in any order and a run can
    go on exactly where it stopped, which a stream of shards cannot without reading up to there.
    """
    videos: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                sample, extension = f"{folder}/{stem}" if folder else stem, "." + extension.lower()
                if extension.endswith(SUFFIXES):
                    videos[sample] = (f"{path}:{member.name}", member.offset_data, member.size)
                elif extension in (".cls", ".json"):
                    file = shard.extractfile(member)
                    assert file is not None
                    if (label := _label(f"{key}: {path}:{member.name}", file.read())) is not None:
                        labels[sample] = label
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"{key}: {path} cannot be read as an uncompressed .tar: {error}") from error
    return [
        Entry(path, labels.get(sample), name, offset, length)
        for sample, (name, offset, length) in videos.items()
    ]


def _label(where: str, content: bytes) -> int | None:
    """The number in a ``.cls`` or ``.json`` file; None for a .json that says nothing of a label."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{where} must hold a whole number or JSON, got {content[:40]!r}") from error
    value = value.get("label") if isinstance(value, dict) else value
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ConfigError(f"{where} must hold a whole number, got {value!r}")
    return value
