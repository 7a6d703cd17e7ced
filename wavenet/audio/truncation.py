"""Detects recordings that are shorter than their header says; libsndfile mostly does not."""

from __future__ import annotations

import os
import re

# Writers to a pipe do not know the length and write a size in these ranges.
_STREAMED = (range(0x7F000000, 0x80001000), range(0xFFFF0000, 1 << 32))
# Some writers include their header in the size of the data.
_SLACK_BYTES = 64
# MP3 encoders may or may not count the frames of their delay; PAF counts whole blocks of ten.
_SLACK_FRAMES = {"MP3": 1152, "PAF": 9}
# libsndfile's log about a wrong size: claimed and actual (RF64: actual and claimed).
_CLAIM = re.compile(r"(?:data|SSND|BODY|Data Size|Data length)[ :]+(\d+) \(?should be (\d+)")
_CLAIM_W64 = re.compile(r"^riff : (\d+) \(should be (\d+)", re.M)
_CLAIM_RF64 = re.compile(r"frame count (\d+) does not match value from 'ds64' chunk of (\d+)")


def ends_early(descriptor: int, size: int, form: str, log: str, claimed: int, decoded: int) -> bool:
    """Return whether a decoded file contains less audio than its header says.

    The result is False if the length is unknown: for writers to a pipe, formats without a length (IRCAM, PAF,
    PVF), and formats whose length libsndfile does not report (AVR, MPC 2000).

    Parameters
    ----------
    descriptor : int
        The file, open for reading; its position is changed.
    size : int
        In bytes.
    form : str
        libsndfile's name of the container.
    log : str
        The log that libsndfile wrote when it opened the file.
    claimed, decoded : int
        Frames according to the header (0 if unknown), and frames decoded.
    """
    if found := _CLAIM.search(log):
        promised, there = int(found[1]), int(found[2])
        if there + _SLACK_BYTES < promised and not any(promised in sizes for sizes in _STREAMED):
            return True
    if form == "W64" and (found := _CLAIM_W64.search(log)):
        return int(found[2]) + _SLACK_BYTES < int(found[1]) < 1 << 62
    if form == "RF64" and (found := _CLAIM_RF64.search(log)):
        return int(found[1]) < int(found[2]) < 1 << 62
    if form == "VOC" and "Seems to be a truncated file" in log:
        return True
    if form == "OGG" and not _ogg_ends(descriptor, size):
        return True
    if form == "MP3" and not _mp3_counts_frames(descriptor):
        return False
    if form == "NIST":
        claimed = _nist_frames(descriptor)
    return decoded + _SLACK_FRAMES.get(form, 0) < claimed


def _read(descriptor: int, start: int, count: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, count)


def _ogg_ends(descriptor: int, size: int) -> bool:
    """Return whether the last page of an Ogg file is complete and ends its stream (RFC 3533, section 6)."""
    # A page is at most 65,307 bytes.
    tail = _read(descriptor, max(0, size - (1 << 17)), 1 << 17)
    page = tail.rfind(b"OggS")
    if page < 0 or page + 27 > len(tail):
        return False
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    whole = len(segments) == tail[page + 26] and page + 27 + len(segments) + sum(segments) <= len(tail)
    return whole and bool(tail[page + 5] & 4)


def _mp3_counts_frames(descriptor: int) -> bool:
    """Return whether an MP3 file has a Xing header with a frame count; otherwise its length is a guess."""
    head = _read(descriptor, 0, 10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:
        start = 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    found = re.search(rb"(?:Xing|Info)\0\0\0(.)", _read(descriptor, start, 4096), re.S)
    return found is not None and bool(found[1][0] & 1)


def _nist_frames(descriptor: int) -> int:
    """Return the sample count of a NIST SPHERE header; libsndfile derives its own from the file size."""
    found = re.search(rb"^sample_count -i (\d+)", _read(descriptor, 0, 1024), re.M)
    return int(found[1]) if found else 0
