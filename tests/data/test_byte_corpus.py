"""Text: what is read, what is skipped, what is said when it cannot be read."""

import email
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral.data import ByteCorpus, repeats_last_successor
from spectral.errors import ConfigError

STDLIB = Path(email.__file__).parent


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def corpus_of(content):
    return ByteCorpus(data=torch.tensor(list(content), dtype=torch.uint8), path="text")


def bytes_of(corpus):
    return bytes(corpus.data.tolist())


def test_folder_is_read_in_sorted_order_and_the_rest_is_counted(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"bee ")
    (tmp_path / "a.txt").write_bytes(b"ay ")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_bytes(b"sea")
    (tmp_path / ".hidden").write_bytes(b"no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.txt").write_bytes(b"no")
    (tmp_path / "image").write_bytes(b"\x89\0\1")
    (tmp_path / "link").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe")
    corpus = ByteCorpus.from_path(tmp_path)
    assert bytes_of(corpus) == b"ay bee sea"
    assert (corpus.n_files, corpus.n_skipped, corpus.truncated) == (3, 5, False)


def test_unreadable_files_in_a_folder_are_skipped(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    opened = Path.open

    def deny(self, *args, **kwargs):
        if self.name == "a":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", deny)
    corpus = ByteCorpus.from_path(tmp_path)
    assert bytes_of(corpus) == b"b"
    assert corpus.n_skipped == 1
    with pytest.raises(ConfigError, match=r"--text_path .*a cannot be read \(Permission denied\); give a readable"):
        ByteCorpus.from_path(tmp_path / "a")


@pytest.mark.parametrize(("limit", "expected"), [(3, b"abc"), (5, b"abcde"), (6, b"abcdef"), (9, b"abcdef")])
def test_reading_stops_at_the_limit(tmp_path, limit, expected):
    (tmp_path / "1").write_bytes(b"abcd")
    (tmp_path / "2").write_bytes(b"ef")
    corpus = ByteCorpus.from_path(tmp_path, max_bytes=limit)
    assert bytes_of(corpus) == expected
    assert corpus.truncated == (limit < 6)
    assert bytes_of(ByteCorpus.from_path(tmp_path / "1", max_bytes=2)) == b"ab"


def test_a_file_named_directly_may_hold_any_byte(tmp_path):
    (tmp_path / "all").write_bytes(bytes(range(256)))
    assert bytes_of(ByteCorpus.from_path(tmp_path / "all")) == bytes(range(256))


def test_windows_are_real_text_of_their_own_part():
    corpus = ByteCorpus.from_path(STDLIB, max_bytes=200_000)
    text = bytes_of(corpus)
    held_out_size = len(text) // 10
    for split, part in (("train", text[:-held_out_size]), ("held_out", text[-held_out_size:])):
        batch = corpus.windows(16, 64, split=split, generator=generator(), device="cpu")
        assert batch.tokens.shape == (16, 64)
        assert all(bytes(row) in part for row in batch.tokens.tolist())
        assert batch.predictable.any()
        assert batch.period is None
    again = corpus.windows(16, 64, split="held_out", generator=generator(), device="cpu")
    assert again.sha256() == batch.sha256()


def test_every_window_can_be_drawn_and_none_leaves_its_part():
    corpus = corpus_of(range(100))
    first = corpus.windows(500, 10, split="held_out", generator=generator(), device="cpu").tokens[:, 0]
    assert set(first.tolist()) == {90}
    first = corpus.windows(4000, 10, split="train", generator=generator(), device="cpu").tokens[:, 0]
    assert set(first.tolist()) == set(range(81))


def test_byte_frequencies_are_those_of_the_training_part():
    frequencies = corpus_of(b"aab" * 6 + b"zz").byte_frequencies
    assert frequencies.shape == (256,)
    assert float(frequencies[ord("a")]) == pytest.approx(12 / 18)
    assert float(frequencies[ord("b")]) == pytest.approx(6 / 18)
    assert float(frequencies[ord("z")]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30).flatmap(lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1)))
def test_last_successor_rule_equals_a_slow_look_up(rows):
    mask = repeats_last_successor(torch.tensor(rows)).tolist()
    for row, found in zip(rows, mask, strict=True):
        for t in range(len(row) - 1):
            earlier = [s for s in range(t) if row[s] == row[t]]
            assert found[t] == bool(earlier and row[earlier[-1] + 1] == row[t + 1])


def test_faults_of_the_path_are_one_line_with_a_remedy(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").write_bytes(b"text")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "missing": "does not exist; give an existing file or folder",
        "empty": "holds no text; give a file or folder with text in it",
        "folder": "holds no text (1 entries skipped); give a file or folder with text in it",
        "pipe": "cannot be read (neither a file nor a folder); give a readable path",
        "empty/below": "cannot be read (Not a directory); give a readable path",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError) as caught:
            ByteCorpus.from_path(tmp_path / name)
        assert caught.value.faults == [f"--text_path {tmp_path / name} {message}"]


def test_short_text_names_what_is_needed():
    corpus_of(b"x" * 640).require(64)
    message = "--text_path text holds 639 bytes, --seq_length 64 needs 640 .* give more text or lower --seq_length"
    with pytest.raises(ConfigError, match=message):
        corpus_of(b"x" * 639).windows(1, 64, split="train", generator=generator(), device="cpu")
