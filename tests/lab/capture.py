"""Every frame that hosts put on the wire, as a pcap file, taken at the bridge's ports; and what is in it.

Run inside the bridge's network: `python capture.py FILE ADDRESS=PORT...`; it ends with its standard input.
"""

import select
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ALL_PROTOCOLS = 3
PACKET_STATISTICS, PACKET_IGNORE_OUTGOING, SOL_PACKET, SO_RCVBUFFORCE = 6, 23, 263, 33
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
IPV4, TCP = 0x0800, 6


def capture(path: str, ports: list[str]) -> None:
    """Write frames to `path` until standard input ends; then say how many there were and how many were lost.

    A port sees what its host sends as incoming, so each frame between two hosts is taken once, at its sender's port.
    """
    sockets = [_listening(port) for port in ports]
    num_frames, is_over = 0, False
    with Path(path).open("wb") as file:
        file.write(PCAP_HEADER)
        print("listening", flush=True)
        while True:
            # What was sent before the end may still stand in line.
            ready, _, _ = select.select(sockets if is_over else [*sockets, sys.stdin], [], [], 0.0 if is_over else None)
            if is_over and not ready:
                break
            is_over = is_over or sys.stdin in ready
            for listener in (each for each in ready if each is not sys.stdin):
                file.write(_recorded(listener.recv(1 << 18)))
                num_frames += 1
    print(num_frames, sum(_lost(each) for each in sockets), flush=True)


def _listening(port: str) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    listener.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    listener.bind((port, 0))
    return listener


def _lost(listener: socket.socket) -> int:
    _, lost = struct.unpack("II", listener.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    return lost


def _recorded(frame: bytes) -> bytes:
    seconds = time.time()
    return struct.pack("<IIII", int(seconds), int(seconds % 1 * 1e6), len(frame), len(frame)) + frame


@dataclass(frozen=True)
class Segment:
    """One TCP segment."""

    at: float
    """Seconds since 1970."""
    source: tuple[str, int]
    target: tuple[str, int]
    sequence: int
    payload: bytes
    num_bytes: int
    """Bytes of the whole frame on the wire."""

    def touches(self, port: int) -> bool:
        return port in (self.source[1], self.target[1])


def segments(path: Path) -> Iterator[Segment]:
    """Yield the TCP segments of a pcap file, empty ones too."""
    content = path.read_bytes()
    assert content.startswith(PCAP_HEADER), path
    start = len(PCAP_HEADER)
    while start < len(content):
        seconds, micros, length, _ = struct.unpack_from("<IIII", content, start)
        segment = _segment(seconds + micros / 1e6, memoryview(content)[start + 16 : start + 16 + length])
        start += 16 + length
        if segment:
            yield segment


def _segment(at: float, frame: memoryview) -> Segment | None:
    if len(frame) < 34 or struct.unpack_from("!H", frame, 12)[0] != IPV4 or frame[23] != TCP:
        return None
    ip = frame[14:]
    header = 4 * (ip[0] & 15)
    tcp = ip[header : struct.unpack_from("!H", ip, 2)[0]]
    source, target, sequence = struct.unpack_from("!HHI", tcp)
    ends = [socket.inet_ntoa(bytes(ip[first : first + 4])) for first in (12, 16)]
    payload = bytes(tcp[4 * (tcp[12] >> 4) :])
    return Segment(at, (ends[0], source), (ends[1], target), sequence, payload, len(frame))


Line = tuple[tuple[str, int], tuple[str, int]]


def streams(path: Path) -> dict[Line, bytes]:
    """Return what went over each TCP line in each direction, in order and without repetitions."""
    parts: dict[Line, list[Segment]] = defaultdict(list)
    for segment in segments(path):
        if segment.payload:
            parts[segment.source, segment.target].append(segment)
    return {line: _joined(found) for line, found in parts.items()}


def _joined(found: list[Segment]) -> bytes:
    """Put segments in order; sequence numbers count from the line's first one, modulo 2**32."""
    first = found[0].sequence
    placed = sorted(((each.sequence - first + (1 << 31)) % (1 << 32), each.payload) for each in found)
    content, end = bytearray(), placed[0][0]
    for position, payload in placed:
        new = payload[max(0, end - position) :]
        content += new
        end = max(end, position + len(payload))
    return bytes(content)


if __name__ == "__main__":
    capture(sys.argv[1], sys.argv[2:])
