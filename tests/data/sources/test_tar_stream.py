"""Tars read front to back: what the standard library writes comes out, and damage costs no more than it hides."""

import hashlib
import io
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamscale.data.sources.tar_stream import Member, TarStream

BLOCK = 512


def _tar(files: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in files:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def _read(content: bytes) -> tuple[list[Member], TarStream]:
    stream = TarStream(io.BytesIO(content), lambda _: True)
    return list(stream), stream


def _files(members: list[Member]) -> list[tuple[str, bytes | None]]:
    return [(member.name, member.content) for member in members]


FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
SEVERAL = [(f"{number}.bin", bytes([number]) * (300 * number)) for number in range(1, 9)]


@given(
    st.lists(st.tuples(st.from_regex(r"\A[abcé/]{0,250}[abcé]\Z"), st.binary(max_size=2000)), max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_members_are_those_the_standard_library_finds(files: list[tuple[str, bytes]], form: int) -> None:
    content = _tar(files, form)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(item.name, item.offset_data, item.size) for item in tar if item.isreg()]
    members, stream = _read(content)
    assert [(member.name, member.offset, member.size) for member in members] == expected
    assert [content[member.offset : member.offset + member.size] for member in members] == [m.content for m in members]
    assert (stream.size_bytes, stream.num_damaged) == (len(content), 0)
    assert stream.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("form", FORMATS)
def test_folders_and_links_are_passed_over(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            item = tarfile.TarInfo("thing")
            item.type, item.linkname = kind, "a" * 90
            tar.addfile(item)
        last = tarfile.TarInfo("last")
        last.size = 3
        tar.addfile(last, io.BytesIO(b"abc"))
    assert _files(_read(buffer.getvalue())[0]) == [("last", b"abc")]


def test_only_wanted_content_is_kept() -> None:
    members = list(TarStream(io.BytesIO(_tar(SEVERAL)), lambda name: name == "3.bin"))
    assert [member.name for member in members if member.content is not None] == ["3.bin"]
    assert all(member.complete for member in members)


@pytest.mark.parametrize("damage", ["checksum", "zeros", "noise"])
@pytest.mark.parametrize("victim", [0, 3, 7])
def test_a_damaged_header_hides_its_own_member_only(damage: str, victim: int) -> None:
    content = bytearray(_tar(SEVERAL, tarfile.USTAR_FORMAT))
    members, _ = _read(bytes(content))
    start = members[victim].offset - BLOCK
    filling = {"checksum": b"x" + content[start + 1 : start + BLOCK], "zeros": bytes(BLOCK), "noise": b"\xaa" * BLOCK}
    content[start : start + BLOCK] = filling[damage]
    found, stream = _read(bytes(content))
    assert _files(found) == SEVERAL[:victim] + SEVERAL[victim + 1 :]
    assert stream.num_damaged == 1


def test_a_damaged_header_after_a_long_name_does_not_give_that_name_to_another() -> None:
    content = bytearray(_tar([("long" * 60, b"1"), ("next", b"2")], tarfile.GNU_FORMAT))
    first, _ = _read(bytes(content))
    content[first[0].offset - BLOCK] ^= 1
    assert _files(_read(bytes(content))[0]) == [("next", b"2")]


def test_a_tar_cut_short_keeps_what_lies_before_the_cut() -> None:
    content = _tar(SEVERAL, tarfile.USTAR_FORMAT)
    members, _ = _read(content)
    for cut in range(members[4].offset - 100, members[5].offset, 97):
        found, stream = _read(content[:cut])
        assert _files([member for member in found if member.complete])[:4] == SEVERAL[:4]
        assert all(member.content is None for member in found if not member.complete)
        assert stream.size_bytes == cut


def test_tars_put_together_are_read_to_the_end() -> None:
    found, stream = _read(_tar(SEVERAL[:2]) + _tar(SEVERAL[2:]))
    assert _files(found) == SEVERAL
    assert stream.num_damaged == 0


@pytest.mark.parametrize("content", [b"", b"this is no tar", b"PK\x03\x04" * 1000])
def test_what_is_no_tar_has_no_members(content: bytes) -> None:
    found, stream = _read(content)
    assert found == []
    assert stream.num_damaged == bool(content)
