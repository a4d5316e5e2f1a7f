"""A server that speaks MongoDB's wire protocol on loopback, over documents in memory (mongomock).

What the driver sends and reads goes through a socket as it would to mongod: handshake, `find`, its cursor's batches,
errors with their codes, and login, which this server refuses. No mongod itself can be had for these tests.
Source: MongoDB's specification of OP_MSG, OP_QUERY and OP_REPLY.
"""

import itertools
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from typing import Any

import bson
import mongomock

HEADER = struct.Struct("<iiii")
"""Length of the whole message, its number, the number that it answers, kind."""
OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
BATCH = 3
"""Documents in an answer: few, so that cursors go on."""
GREETING = {
    "ismaster": True, "helloOk": True, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21, "logicalSessionTimeoutMinutes": 30,
}  # fmt: skip


class MongoServer(socketserver.ThreadingTCPServer):
    """`server.documents["database"]["collection"]` is what it serves; what it was asked is in `asked`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.documents, self.asked = mongomock.MongoClient(), list[str]()
        self.refusal: Mapping[str, Any] = {}
        """What every `find` is answered instead."""
        self.pause, self.garbage = 0.0, dict[str, bytes]()
        self.cursors: dict[int, list[Any]] = {}
        self.numbers = itertools.count(1)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "MongoServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def answer(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        name = next(iter(command))
        self.asked.append(name)
        if name in ("hello", "ismaster", "isMaster"):
            return {**GREETING, "ok": 1}
        if name in ("find", "getMore"):
            time.sleep(self.pause)
            return self.refusal or (self._found(command) if name == "find" else self._more(command["getMore"], command))
        if name.startswith("sasl"):
            return {"ok": 0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": f"no {command} here"}
        return {"ok": 1}

    def _found(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        collection = self.documents[command["$db"]][command["find"]]
        try:
            found = list(collection.find(command["filter"]).sort(list(command.get("sort", {"_id": 1}).items())))
        except Exception as error:  # whatever the stand-in has against a filter, mongod would refuse by a code
            return {"ok": 0, "code": 2, "codeName": "BadValue", "errmsg": f"{error} in {command['filter']}"}
        number = next(self.numbers)
        self.cursors[number] = found
        return self._batch(number, "firstBatch", f"{command['$db']}.{command['find']}")

    def _more(self, number: int, command: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._batch(number, "nextBatch", f"{command['$db']}.{command['collection']}")

    def _batch(self, number: int, name: str, collection: str) -> Mapping[str, Any]:
        batch, rest = self.cursors[number][:BATCH], self.cursors[number][BATCH:]
        self.cursors[number] = rest
        return {"cursor": {name: batch, "id": bson.Int64(number if rest else 0), "ns": collection}, "ok": 1}


class _Session(socketserver.StreamRequestHandler):
    server: MongoServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle(self) -> None:
        while len(header := self.rfile.read(HEADER.size)) == HEADER.size:
            length, number, _, kind = HEADER.unpack(header)
            body = self.rfile.read(length - HEADER.size)
            # OP_QUERY: flags, name of the collection and its end, two numbers, the command; OP_MSG: flags, kind 0.
            start = body.index(b"\0", 4) + 9 if kind == OP_QUERY else 5
            size = struct.unpack_from("<i", body, start)[0]
            command = bson.decode(body[start : start + size])
            answer = bson.encode(self.server.answer(command))
            self._send(number, kind, self.server.garbage.get(next(iter(command)), answer))

    def _send(self, number: int, kind: int, document: bytes) -> None:
        if kind == OP_QUERY:
            kind, body = OP_REPLY, struct.pack("<iqii", 8, 0, 0, 1) + document
        else:
            kind, body = OP_MSG, struct.pack("<iB", 0, 0) + document
        self.wfile.write(HEADER.pack(HEADER.size + len(body), 0, number, kind) + body)
