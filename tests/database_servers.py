"""Real servers for tests: PostgreSQL by its own binaries, OPTIMADE by the reference implementation, on loopback."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

OWNER_PASSWORD = "owner-7Zk2"
READER_PASSWORD = "reader/p@ss-9Qx4"
"""With characters that an address must escape."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's server programs, None where they are not installed."""
    found = [Path(place).resolve().parent for name in ("postgres", "initdb") if (place := shutil.which(name))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if all((folder / name).exists() for name in ("initdb", "postgres"))), None)


@dataclass(frozen=True)
class PostgresServer:
    """A running server with a database `materials`, its owner, and a user `reader` with a password."""

    port: int

    def address(self, user: str = "reader", database: str = "materials") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str) -> None:
        import psycopg

        where = f"host=127.0.0.1 port={self.port} user=owner dbname=materials password={OWNER_PASSWORD}"
        with psycopg.connect(where, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def insert(self, table: str, rows: Sequence[tuple]) -> None:
        import psycopg

        where = f"host=127.0.0.1 port={self.port} user=owner dbname=materials password={OWNER_PASSWORD}"
        marks = ", ".join(["%s"] * len(rows[0]))
        with psycopg.connect(where) as connection, connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a server in a folder of its own; skips the test where there is no PostgreSQL, or nobody who may run it."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's server programs (initdb, postgres)")
    user = _account()
    with tempfile.TemporaryDirectory(prefix="ray-fed-pg-") as folder:
        passwords = Path(folder) / "password"
        passwords.write_text(OWNER_PASSWORD)
        for path in (Path(folder), passwords):
            os.chown(path, *_ids(user))
        data, port, settings = f"{folder}/data", free_port(), {"user": user, "cwd": folder} if user else {"cwd": folder}
        _run([binaries / "initdb", "-D", data, "-U", "owner", "-A", "scram-sha-256", "--pwfile", passwords,
              "--no-sync", "-E", "UTF8", "--locale=C"], settings)  # fmt: skip
        options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}",
                   "-c", "fsync=off", "-c", "full_page_writes=off"]  # fmt: skip
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen([binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, **settings)
        try:
            yield _prepared(port, server)
        finally:
            server.terminate()
            server.wait(30)


class OptimadeServer:
    """The reference server behind a door that counts requests, and can be told to answer badly."""

    def __init__(self, app, port: int):
        self.app, self.port = app, port
        self.asked: list[str] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        """(status, headers) of the next answers; the server's own when there are none left."""
        self.bodies: list[bytes] = []
        """Bodies of the next answers to questions for structures, after `answers`."""
        self.fails_at = 0
        """From which request on the door is shut; 0 never."""

    @property
    def address(self) -> str:
        return f"optimade+http://127.0.0.1:{self.port}"

    def insert(self, structures: Sequence[dict]) -> None:
        self.app.state.entry_collections["structures"].insert([dict(each) for each in structures])

    def num_pages(self) -> int:
        return sum("/structures" in path for path in self.asked)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.asked.append(scope["path"])
        shut = bool(self.fails_at) and len(self.asked) >= self.fails_at
        status, headers = self.answers.pop(0) if self.answers else (404 if shut else 0, {})
        body = b"{}"
        if not status and self.bodies and "/structures" in scope["path"]:
            status, body = 200, self.bodies.pop(0)
        if not status:
            await self.app(scope, receive, send)
            return
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def optimade_server(structures: Sequence[dict], fields: Sequence[str]) -> Iterator[OptimadeServer]:
    """Serve structures by the reference implementation, from a database in memory, on a port of its own.

    fields   the provider's own, without their prefix _exmpl_
    """
    pytest.importorskip("optimade.server.create_app", reason="needs optimade[server]")
    import uvicorn
    from optimade.server.config import ServerConfig
    from optimade.server.create_app import create_app

    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-fed-optimade-") as folder:
        config = ServerConfig(
            insert_test_data=False, database_backend="mongomock", mongo_database=f"materials-{port}",
            page_limit=7, page_limit_max=20, provider_fields={"structures": list(fields)}, log_dir=folder,
        )  # fmt: skip
        # Set past its validation, which looks the address up on the Internet.
        config.__dict__["license"] = "https://spdx.org/licenses/CC-BY-4.0"
        door = OptimadeServer(create_app(config), port)
        door.insert(structures)
        server = uvicorn.Server(uvicorn.Config(door, host="127.0.0.1", port=port, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        waited = threading.Event()
        for _ in range(600):
            if server.started:
                break
            waited.wait(0.05)
        try:
            yield door
        finally:
            server.should_exit = True
            thread.join(30)


def _account() -> str:
    """Return the account to run as; PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return ""
    known = {entry.pw_name for entry in pwd.getpwall()}
    found = next((name for name in ("postgres", "nobody") if name in known), None)
    if found is None:
        pytest.skip("needs an account other than root to run PostgreSQL")
    return found


def _ids(user: str) -> tuple[int, int]:
    entry = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    return entry.pw_uid, entry.pw_gid


def _run(command: Sequence[object], settings: dict) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stderr


def _prepared(port: int, server: subprocess.Popen) -> PostgresServer:
    import psycopg

    where = f"host=127.0.0.1 port={port} user=owner dbname=postgres password={OWNER_PASSWORD} connect_timeout=2"
    waited = threading.Event()
    for _ in range(600):
        assert server.poll() is None, "PostgreSQL did not start"
        with contextlib.suppress(psycopg.OperationalError):
            with psycopg.connect(where, autocommit=True) as connection:
                connection.execute("CREATE DATABASE materials")
                connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{READER_PASSWORD}'")
            made = PostgresServer(port)
            made.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO reader")
            return made
        waited.wait(0.1)
    raise AssertionError("PostgreSQL did not answer within a minute")
