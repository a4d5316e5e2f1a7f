"""The lab's own instruments: what they must find, and what they must not."""

import struct

import pytest

from tests.lab.capture import PCAP_HEADER, segments, streams
from tests.lab.marked_data import TARGET, marked_rows
from tests.lab.test_encrypted import first_that_is_no_record


def frame(sequence: int, payload: bytes, source: int = 6379, padding: bytes = b"") -> bytes:
    """An Ethernet frame with one TCP segment, as a pcap record."""
    tcp = struct.pack("!HHIIBBHHH", source, 40000, sequence % (1 << 32), 0, 5 << 4, 0, 0, 0, 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, b"\x0a\x4d\x00\x02", b"\x0a\x4d\x00\x03")
    whole = bytes(12) + b"\x08\x00" + ip + tcp + padding
    return struct.pack("<IIII", 1, 500_000, len(whole), len(whole)) + whole


def test_segments_are_put_in_order_without_what_was_sent_twice(tmp_path):
    near_the_end = (1 << 32) - 4  # sequence numbers begin again at 0
    frames = [
        (near_the_end, b"abcd"),
        (near_the_end + 8, b"ij"),
        (near_the_end + 4, b"efgh"),
        (near_the_end + 2, b"cdef"),
    ]
    path = tmp_path / "x.pcap"
    path.write_bytes(PCAP_HEADER + b"".join(frame(*each) for each in frames) + frame(7, b"other line", source=22))
    assert streams(path) == {
        (("10.77.0.2", 6379), ("10.77.0.3", 40000)): b"abcdefghij",
        (("10.77.0.2", 22), ("10.77.0.3", 40000)): b"other line",
    }


def test_padding_of_a_short_frame_is_no_payload(tmp_path):
    path = tmp_path / "x.pcap"
    path.write_bytes(PCAP_HEADER + frame(0, b"", padding=bytes(6)))
    [segment] = segments(path)
    assert segment.payload == b""
    assert segment.num_bytes == 60


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"\x16\x03\x01\x00\x02ab\x17\x03\x03\x00\x01c", None),
        (b"\x17\x03\x03\x00\x05ab", None),  # a record the line was closed in
        (b"PRI * HTTP/2.0\r\n", 0),
        (b"\x16\x03\x01\x00\x02abGET / HTTP/1.1", 7),
    ],
)
def test_what_is_no_tls_record_is_found(content, wrong):
    assert first_that_is_no_record(content) == wrong


def test_each_marker_is_found_in_every_form_and_in_the_rows_themselves():
    rows, markers = marked_rows("north", 20, 11)
    text = rows.to_csv(index=False).encode()
    assert {f"number {number}" for number in markers.numbers} <= set(markers.found_in(text))
    assert {f"text {word}" for word in markers.texts} <= set(markers.found_in(text))
    assert markers.found_in(rows[TARGET].to_numpy().astype("<f4").tobytes())
    assert not markers.found_in(marked_rows("south", 20, 12)[0].to_csv(index=False).encode())
