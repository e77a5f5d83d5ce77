"""The language model's text: fixed splits that a new release of Python hardly moves."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.models.zoo import text


def test_the_splits_are_disjoint_and_hold_the_whole_text() -> None:
    from pydoc_data.topics import topics

    parts = {split: set(text.paragraphs(split)) for split in text.SPLITS}
    everything = {part for topic in topics.values() for part in topic.split("\n\n")}
    left = everything.difference(*parts.values())
    assert sum(map(len, parts.values())) == len(everything) - len(left)
    assert not any(char.isalnum() for part in left for char in part)


def test_about_a_tenth_of_the_text_is_held_out() -> None:
    sizes = {split: len(text.load(split)) for split in text.SPLITS}
    total = sum(sizes.values())
    assert total > 300_000
    assert 0.06 < sizes["evaluation"] / total < 0.14
    assert 0.02 < sizes["calibration"] / total < 0.08


def test_a_text_is_its_paragraphs_in_utf8() -> None:
    left = bytes(text.load("evaluation").tolist()).decode()
    for paragraph in text.paragraphs("evaluation"):
        assert left.startswith(paragraph)
        left = left.removeprefix(paragraph).removeprefix("\n\n")
    assert left == ""


def test_another_process_has_the_same_split() -> None:
    code = (
        "import hashlib; from edgeopt.models.zoo import text; "
        "print(hashlib.sha256(bytes(text.load('evaluation').tolist())).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = hashlib.sha256(bytes(text.load("evaluation").tolist())).hexdigest()
    assert there.strip() == here


@pytest.mark.parametrize(
    ("paragraph", "split"),
    [
        ('The "assert" statement', "train"),
        ("Assert statements are a convenient way to insert debugging assertions", "train"),
    ],
)
def test_a_paragraph_stays_where_it_is(paragraph: str, split: str) -> None:
    assert text.split_of(paragraph) == split


@given(st.text(st.characters(codec="utf-8")))
def test_markup_spacing_and_case_move_no_paragraph(paragraph: str) -> None:
    changed = paragraph.replace(" ", "\n   ").replace("*", "`") + " **"
    assert text.split_of(changed) == text.split_of(paragraph)


def test_windows_cover_the_text_and_each_label_is_the_next_byte() -> None:
    tokens, labels = text.windows("calibration", 96)
    stream = text.load("calibration").long()
    assert tokens.dtype == labels.dtype == torch.int64
    assert torch.equal(tokens.flatten(), stream[: tokens.numel()])
    assert torch.equal(labels.flatten(), stream[1 : labels.numel() + 1])
    assert 0 <= len(stream) - 1 - tokens.numel() < 96


def test_a_window_that_the_text_does_not_fill_is_refused() -> None:
    longest = len(text.load("calibration")) - 1
    assert len(text.windows("calibration", longest)[0]) == 1
    with pytest.raises(ValueError, match="no window of"):
        text.windows("calibration", longest + 1)
    with pytest.raises(ValueError, match="no window of 0"):
        text.windows("calibration", 0)
    with pytest.raises(ValueError, match="split is train"):
        text.windows("test", 96)


@given(st.integers(1, 500), st.integers(1, 500))
def test_spread_indices_are_distinct_and_even(count: int, wanted: int) -> None:
    chosen = text.spread(count, wanted)
    assert len(chosen) == min(count, wanted)
    assert chosen[0] == 0
    assert 0 <= int(chosen[-1]) < count
    steps = chosen.diff()
    if len(steps):
        assert 1 <= int(steps.min()) <= int(steps.max()) <= int(steps.min()) + 1
