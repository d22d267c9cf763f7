"""Your own files as training data, read as bytes.

The last tenth of the bytes is held out. Faults of the path are `ConfigError`s that name `--text_path`.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from spectral.data.batch import TokenBatch
from spectral.errors import ConfigError

N_BYTE_VALUES = 256
HELD_OUT_SHARE = 10  # one part in this many
DEFAULT_MAX_BYTES = 64 * 2**20

Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ByteCorpus:
    """The bytes of a file, or of the files of a folder one after the other.

    Attributes:
        data: [n] the bytes, on the CPU.
        path: where they came from, for messages.
        n_files: files read.
        n_skipped: hidden, unreadable, binary and other irregular entries that were passed over.
        truncated: whether reading stopped at the limit with text left over.
    """

    data: UInt8[Tensor, " n"]
    path: str
    n_files: int = 1
    n_skipped: int = 0
    truncated: bool = False

    @classmethod
    def from_path(cls, path: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> "ByteCorpus":
        """Read one file, or all text files of a folder and its subfolders in sorted order.

        In folders, hidden names, links, files that cannot be read and files that hold a NUL byte are skipped and
        counted. A file named directly is read as it is.

        Args:
            path: a file or a folder.
            max_bytes: reading stops there.

        Raises:
            ConfigError: the path is missing, unreadable, neither file nor folder, or holds no text.
        """
        path = Path(path)
        try:
            chunks, n_skipped = _read_path(path, max_bytes + 1)  # one byte more tells whether text is left over
        except FileNotFoundError:
            raise ConfigError([f"--text_path {path} does not exist; give an existing file or folder"]) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError([f"--text_path {path} cannot be read ({reason}); give a readable path"]) from None
        content = bytearray().join(chunks)
        if not content:
            skipped = f" ({n_skipped} entries skipped)" if n_skipped else ""
            raise ConfigError([f"--text_path {path} holds no text{skipped}; give a file or folder with text in it"])
        truncated = len(content) > max_bytes
        data = torch.frombuffer(content, dtype=torch.uint8)[:max_bytes]
        return cls(data=data, path=str(path), n_files=len(chunks), n_skipped=n_skipped, truncated=truncated)

    def split(self, name: Split) -> UInt8[Tensor, " m"]:
        """Return the training part, or the held-out last tenth."""
        n_train = len(self.data) - len(self.data) // HELD_OUT_SHARE
        return self.data[:n_train] if name == "train" else self.data[n_train:]

    def require(self, seq_length: int) -> None:
        """Check that both parts hold at least one window of `seq_length` bytes.

        Raises:
            ConfigError: the text is too short.
        """
        needed = HELD_OUT_SHARE * seq_length
        if len(self.data) < needed:
            raise ConfigError(
                [
                    f"--text_path {self.path} holds {len(self.data)} bytes, --seq_length {seq_length} needs {needed} "
                    f"(one tenth is held out); give more text or lower --seq_length"
                ]
            )

    def windows(
        self,
        batch_size: int,
        seq_length: int,
        *,
        split: Split,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> TokenBatch:
        """Cut windows at uniformly random places.

        `predictable` follows `repeats_last_successor`: real text has no planted repeats, so this is where a one-token
        look-up happens to be right, known only with hindsight. `boundary` is all False, `period` None.

        Args:
            batch_size: number of windows; they may overlap.
            seq_length: bytes per window.
            split: which part to cut from.
            generator: source of the places.
            device: where the result lives.

        Raises:
            ConfigError: the text is too short for one window in each part.
        """
        self.require(seq_length)
        part = self.split(split)
        last_start = len(part) - seq_length
        start = torch.randint(0, last_start + 1, (batch_size, 1), generator=generator, device=generator.device)
        tokens = part[start.cpu() + torch.arange(seq_length)].long()
        predictable = repeats_last_successor(tokens)
        return TokenBatch(tokens=tokens, predictable=predictable, boundary=torch.zeros_like(predictable)).to(device)

    @property
    def byte_frequencies(self) -> Float64[Tensor, " vocab"]:
        """Share of each byte value in the training part, [256], sums to 1."""
        counts = torch.bincount(self.split("train"), minlength=N_BYTE_VALUES).double()
        return counts / counts.sum()


def repeats_last_successor(tokens: Int64[Tensor, "batch position"]) -> Bool[Tensor, "batch position-1"]:
    """Tell where the most recent look-up gives the next token.

    True at t if token t has occurred earlier in the sequence and the token after its most recent earlier occurrence
    equals token t+1.
    """
    batch_size, seq_length = tokens.shape
    position = torch.arange(seq_length, device=tokens.device)
    # Sorting by (token, position) puts the most recent earlier occurrence next to each position, in T log T.
    sorted_keys = (tokens * seq_length + position).sort(dim=1).values
    token, place = sorted_keys // seq_length, sorted_keys % seq_length
    # An occurrence at the last position has no successor; it sorts last among its token and is never an earlier one.
    successor = tokens.gather(1, (place + 1).clamp(max=seq_length - 1))
    same = (token[:, 1:] == token[:, :-1]) & (successor[:, 1:] == successor[:, :-1])
    found = torch.zeros(batch_size, seq_length, dtype=torch.bool, device=tokens.device)
    return found.scatter_(1, place[:, 1:], same)[:, : seq_length - 1]


def _read_path(path: Path, limit: int) -> tuple[list[bytes], int]:
    """Return the contents of a file or a folder, `limit` bytes at most, and how many entries were skipped.

    Raises:
        OSError: the path itself cannot be read, or is neither file nor folder.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _read_folder(path, limit)
    if not stat.S_ISREG(mode):  # reading from a pipe or a device could wait for ever
        raise OSError(errno.EINVAL, "neither a file nor a folder")
    content = _read(path, limit)
    return [content] if content else [], 0


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)


def _read_folder(folder: Path, limit: int) -> tuple[list[bytes], int]:
    """Return the contents of the text files below `folder`, `limit` bytes at most, and how many entries were skipped.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    os.scandir(folder).close()  # os.walk would pass over an unreadable folder without a word
    chunks: list[bytes] = []
    unreadable: list[OSError] = []
    n_skipped = 0
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        visible = sorted(name for name in folders if not _is_hidden_or_link(Path(parent, name)))
        n_skipped += len(folders) - len(visible)
        folders[:] = visible  # os.walk descends into what is left here, in this order
        for name in sorted(names):
            content = _text_content(Path(parent, name), limit)
            if content is None:
                n_skipped += 1
            elif content:
                chunks.append(content)
                limit -= len(content)
            if limit == 0:
                return chunks, n_skipped + len(unreadable)
    return chunks, n_skipped + len(unreadable)


def _text_content(path: Path, limit: int) -> bytes | None:
    """Return the bytes of one file, or None if it is hidden, no regular file, unreadable or binary."""
    if _is_hidden_or_link(path):
        return None
    try:
        content = _read(path, limit) if path.is_file() else None
    except OSError:
        return None
    return None if content is None or b"\0" in content else content


def _is_hidden_or_link(path: Path) -> bool:
    return path.name.startswith(".") or path.is_symlink()
