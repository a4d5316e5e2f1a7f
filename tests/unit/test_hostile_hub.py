"""A hub with changed code tries every call with every kind of argument, in any order: what leaves is what the owner's
policy lets out, each with its line in the ledger, within the budgets, and without a word or a number of the rows."""

import json
import logging
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from queue import Queue

import msgspec
import numpy as np
import pandas as pd
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ray_fed.errors import FedError
from ray_fed.federation.messages import SessionSpec
from ray_fed.federation.secure_client import QUERIES
from ray_fed.federation.silo import make_silo
from ray_fed.learning.layout import Layout
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.standardisation import Standardizer
from ray_fed.learning.trainer import TrainingPlan
from ray_fed.materials.property_task import PropertyTask
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.sites import wire
from ray_fed.sites.agent import SiteAgent, _Place
from ray_fed.sites.answers import FAILED, decode_answer, error_of, message_of
from ray_fed.sites.hub import Hub
from ray_fed.sites.requests import (
    AnyRequest,
    CloseSessionRequest,
    EndRequest,
    EvaluateManyRequest,
    EvaluateRequest,
    FitRequest,
    FitSumRequest,
    Given,
    Invitation,
    InviteRequest,
    JoinRequest,
    LedgerRequest,
    MomentsRequest,
    ObserveRequest,
    OpenRequest,
    OpenSessionRequest,
    PrepareRequest,
    QueryRequest,
    ReceiveModelRequest,
    RestoreRequest,
    SiloRequest,
    decode_request,
)
from ray_fed.sites.site_file import read_site_file
from ray_fed.sites.tasks import accepted, require_plain
from ray_fed.sites.wire import Ask, Encoded, WireError, encode
from tests.sites import agent, certificates, hub_of
from tests.unit.test_site_connections import running

TARGET = "formation_energy_per_atom"
MARK = "CANARY"
ELEMENTS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Ti", "V", "Fe", "Co", "Ni", "Cu", "Zn", "Al", "Ga")
OPTIONS = {"features": "guo65", "hidden": (4,), "target": TARGET, "unit": "eV/atom"}
TASK = PropertyTask("guo65", (("impute", "median"),), (4,))
SIZE = Layout.of(TASK.model(0), "average").size
DIGEST = Layout.of(TASK.model(0), "average").digest
POLICY = {
    "min_examples": 5,
    "max_evaluations_per_run": 12,
    "max_evaluations_per_dataset": 30,
    "max_bytes_per_run": 1 << 20,
    "max_steps_per_round": 64,
    "max_splits_per_dataset": 3,
}
LONGEST_SECONDS = 20
"""Of one call: a bound that says that it ends, not how fast."""
RELEASED = {"description", "moments", "update", "masked", "metrics", "artifact", "counts", "observation"}


def rows_of_owner() -> pd.DataFrame:
    """Return 60 rows in whose every column is something that nobody else may read."""
    random = np.random.default_rng(1)
    pairs = [random.choice(ELEMENTS, 2, replace=False) for _ in range(60)]
    return pd.DataFrame({
        "formula": [f"{a}{random.integers(1, 4)}{b}{random.integers(1, 4)}O" for a, b in pairs],
        f"energy_{MARK}": random.normal(-1.5, 0.8, 60),
        f"note_{MARK}": [f"{MARK}-note-{number}" for number in range(60)],
    })  # fmt: skip


class Host(GuardedSilo):
    """As actors/site_host.py: names that become names of files are checked before."""

    def open_session(self, spec):
        require_plain(self.spec.name, spec.session)
        return super().open_session(spec)

    def restore(self, standardizer, sessions):
        for spec in sessions:
            require_plain(self.spec.name, spec.session)
        super().restore(standardizer, sessions)


class Owner:
    """A site in a folder, its file, and how it makes silos."""

    def __init__(self, folder: Path, **policy):
        self.folder = folder / f"{MARK}-folder"
        self.folder.mkdir()
        frame = rows_of_owner()
        frame.to_csv(self.folder / "alloys.csv", index=False)
        self.numbers = frame[f"energy_{MARK}"].tolist()
        target = {TARGET: {"column": f"energy_{MARK}", "unit": "eV/atom"}}
        alloys = {"source": "alloys.csv", "targets": target, "filters": {"one": {f"note_{MARK}": f"{MARK}-note-7"}}}
        content = {
            "name": "north", "hub": {"address": "hub:1", "key": "3f" * 32}, "datasets": {"alloys": alloys},
            "tasks": ["property"], "state": str(self.folder / "state"), "ledger": str(self.folder / "ledger"),
            "receive_models": str(self.folder / "models"), "perimeter": POLICY | policy,
        }  # fmt: skip
        self.path = self.folder / "site.yaml"
        self.path.write_text(yaml.safe_dump(content))
        self.path.chmod(0o600)

    def __call__(self, invitation: Invitation) -> Host:
        invited = accepted(read_site_file(self.path), invitation)
        return Host(invited.spec, lambda: make_silo(invited.spec, invited.make_task()), site=invited.site)

    def lines(self) -> list[dict]:
        paths = (self.folder / "ledger").rglob("*.jsonl")
        return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]

    def files_elsewhere(self) -> list[str]:
        known = {"alloys.csv", "site.yaml", "state", "ledger", "models"}
        found = [*self.folder.iterdir(), *(path for path in self.folder.parent.iterdir() if path != self.folder)]
        return [path.name for path in found if path.name not in known]

    def secrets(self) -> list[bytes]:
        """Return how marked words and single targets would look in what leaves."""
        words = [MARK.encode(), str(self.folder).encode()]
        texts = [f"{number:.6f}".encode() for number in self.numbers]
        return words + texts + [np.float64(number).tobytes() for number in self.numbers]


class Coordinator:
    """The other side with changed code: it sends any bytes, and keeps all that comes back."""

    def __init__(self, owner: Owner):
        self.owner, self.places, self.calls = owner, {}, 0
        self.agent = SiteAgent("north", None, certificates("north"), owner)  # type: ignore[arg-type]
        self.kinds: Counter[str] = Counter()
        self.marked = 0
        self.run = ""
        self.masked: set[tuple[str, str]] = set()
        self.secrets = owner.secrets()
        self.failures: list[str] = []

    def send(self, request: SiloRequest, silo: str = "north"):
        encoded = encode(request)
        return self.send_bytes(encoded.body, b"".join(encoded.pieces), silo)

    def send_bytes(self, body: bytes, payload: bytes, silo: str = "north"):
        """Return the message that answers, or the error, as the hub reads it."""
        self.calls += 1
        try:
            request = decode_request(body, payload)
        except WireError as error:
            request = error
        place = self.places.setdefault(silo, _Place(silo))
        start = time.monotonic()
        answer, encoded = self.agent._answer(place, Ask(call=self.calls, silo=silo), request)
        assert time.monotonic() - start < LONGEST_SECONDS
        return self._noted(request, answer, encoded)

    def _noted(self, request, answer: wire.Answer, encoded: Encoded):
        raw = answer.body + b"".join(encoded.pieces)
        if answer.kind != "ledger":  # it has hashes and names of kinds; its own test is below
            assert [secret for secret in self.secrets if secret in raw] == []
        assert len(raw) <= wire.MAX_BODY_BYTES + request_limit(request)
        form = decode_answer(answer.kind, answer.body, b"".join(encoded.pieces))
        if answer.kind == FAILED:
            self.failures.append(str(error_of(form, "north", "answering")))
            return None
        assert answer.kind in request.answers
        self.kinds[answer.kind] += answer.kind in RELEASED
        self._require_masks(request, answer)
        self.marked += len(request.names) if isinstance(request, EvaluateRequest) else 0
        return message_of(form)

    def _require_masks(self, request, answer: wire.Answer) -> None:
        """A session that had masks gives no update in clear, also of a silo that was invited anew."""
        if isinstance(request, InviteRequest):
            self.run = request.invitation.run
        if isinstance(request, OpenSessionRequest) and request.spec.secure_threshold > 0:
            self.masked.add((self.run, request.spec.session))
        if isinstance(request, RestoreRequest):
            self.masked |= {(self.run, spec.session) for spec in request.sessions if spec.secure_threshold > 0}
        assert not (answer.kind == "update" and (self.run, request.session) in self.masked)


def request_limit(request) -> int:
    return 0 if isinstance(request, WireError) else request.answer_limit()


# ---- what it sends

SESSIONS = st.sampled_from(
    ["federated", "federated", "other", "federated.metrics", "moments", "../../x", "", "n" * 150, MARK[:3]]
)
ROUNDS = st.one_of(st.integers(0, 4), st.sampled_from([2**31, 2**53]))
SILOS = st.sampled_from(["north", "north", "north", "south", "../x", ""])


def drawn(size, dtype, scale, seed):
    with np.errstate(invalid="ignore", over="ignore"):
        return (np.random.default_rng(seed).normal(size=size) * scale).astype(dtype)


VECTORS = st.builds(
    drawn,
    st.sampled_from([SIZE, SIZE, SIZE, SIZE, 0, 1, SIZE + 1, 3 * SIZE, (SIZE, 2)]),
    st.sampled_from(["<f4", "<f4", "<f4", "<f8", "<i8", "<u8", "|u1"]),
    st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e30]),
    st.integers(0, 9),
) | st.sampled_from([np.nan, np.inf, -np.inf, 1e-45, 3e38]).map(lambda value: np.full(SIZE, value, np.float32))
PLANS = st.builds(
    TrainingPlan,
    st.integers(-1, 5) | st.just(2**63 - 1),
    st.sampled_from([1, 2, 4, 0, -3, 10**9]),
    st.sampled_from([1, 2, 8, 0, -1, 10**12]),
    st.sampled_from([1, 2, 4, 0, -1, 2**53]),
    learning_rate=st.sampled_from([1e-3, 0.0, -1.0, 1e30]),
    optimizer=st.sampled_from(["adam", "sgd", "os.system"]),
    optimizer_state=st.sampled_from(["keep", "reset", "average", "x"]),
    keep_local=st.sampled_from([(), ("0.weight",), (MARK[:4],)]),
    private=st.none()
    | st.builds(PrivateSteps, st.sampled_from([1.0, 1e-9, 1e9]), most_steps=st.none() | st.integers(-1, 9)),
)
SPECS = st.builds(
    SessionSpec,
    SESSIONS,
    PLANS,
    st.integers(-1, 3),
    st.sampled_from([DIGEST, DIGEST, DIGEST, "", "0" * 64]),
    st.sampled_from([6, 0, -1, 10**12]),
    st.sampled_from([0, 0, 2, -1, 10**6]),
)
STANDARDIZERS = st.none() | st.builds(
    lambda size, scale: Standardizer(np.zeros(size), np.full(size, scale)),
    st.sampled_from([65, 65, 1, 0, 66]),
    st.sampled_from([1.0, 0.0, -1.0, 1e-300, 1e300]),
)
INVITATIONS = st.builds(
    Invitation,
    st.sampled_from(["run", "run", "run", "run-2", "../../x", "r" * 300]),
    st.sampled_from(["north", "north", "north", "south"]),
    st.sampled_from(["alloys", "alloys", "alloys", "/etc/passwd", "../alloys.csv", "embedded", ""]),
    st.sampled_from(["property", "property", "os:system", "ray_fed.sites.tasks:own_task", ""]),
    st.fixed_dictionaries({}, optional={
        "features": st.sampled_from(["guo65", "guo73", "/etc/passwd", "x:y"]),
        "hidden": st.sampled_from([(4,), (), (0,), (-1,), (2**40,), (16000,) * 60, "4"]),
        "target": st.sampled_from([TARGET, "formula", "energy", ""]),
        "unit": st.sampled_from(["eV/atom", "kJ/mol", ""]),
        "filters": st.sampled_from([(), ("one",), ("two",), "one", ({"formula": "NaO"},), 5]),
        "where": st.sampled_from(["formula=NaO", ("formula", "NaO")]),
        "make": st.just("os:system"),
    }).map(lambda changed: OPTIONS | changed),
    st.sampled_from([0.0, 0.2, 0.5, 0.2000001, 1e-9, 0.999999]),
    st.sampled_from([0, 0, 1, 2, 3, -1, 2**62]),
)  # fmt: skip
TEXTS = st.text(max_size=20)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXTS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def written(parts):
    """Return byte strings by name as those of secure aggregation travel."""
    return np.frombuffer(json.dumps({name: value.hex() for name, value in parts.items()}).encode(), np.uint8)


PARTS = ["mask.north", "mask.south", "share.south", "signing.south", "north", "south", "x", "mask"]
KEYS = st.dictionaries(st.sampled_from(PARTS), st.binary(max_size=64), max_size=6).map(written)
GIVEN = st.one_of(
    SESSIONS.map(lambda value: Given(value=value)),
    ROUNDS.map(lambda value: Given(value=value)),
    KEYS.map(lambda array: Given(array=array)),
    VECTORS.map(lambda array: Given(array=array)),
    st.sampled_from(
        [Given(), Given(value=-1), Given(array=np.array([2], np.int64)), Given(array=np.array([], np.int64))]
    ),
)
NAMES = st.lists(st.sampled_from(["a", "b", "../x", MARK[:2], ""]), max_size=4).map(tuple)


class HostileHub(RuleBasedStateMachine):
    """Any request after any other. `send` itself checks what comes back."""

    folder: Path

    @initialize()
    def begin(self):
        self.owner = make_owner(self.folder)
        self.hub = Coordinator(self.owner)
        honest_begin(self.hub)
        self.train("federated", 0, 2, np.full(SIZE, 0.01, np.float32))
        assert self.hub.kinds["metrics"] == 1

    @rule()
    def start_well(self):
        """Bring the silo to where most calls mean something."""
        self.hub.send(InviteRequest(ASKED))
        self.hub.send(JoinRequest(Standardizer(np.zeros(65), np.ones(65))))

    @rule(session=SESSIONS, threshold=st.sampled_from([0, 0, 2]), epochs=st.sampled_from([2, 8]), vector=VECTORS)
    def train(self, session, threshold, epochs, vector):
        """The same sessions in clear, under masks, and again in clear."""
        self.start_well()
        self.hub.send(OpenSessionRequest(SessionSpec(session, replace(PLAN, epochs=epochs), 0, DIGEST, 6, threshold)))
        self.hub.send(FitRequest(session, 1, vector))
        models = tuple(np.random.default_rng(seed).normal(size=SIZE).astype(np.float32) for seed in range(3))
        self.hub.send(EvaluateRequest(session, ("a", "b", "c"), models))
        for query in ("secure_keys", "secure_moments"):
            self.hub.send(QueryRequest(query, (Given(value=session), Given(value=1))))

    @rule(invitation=INVITATIONS, silo=SILOS)
    def invite(self, invitation, silo):
        self.hub.send(InviteRequest(invitation), silo)

    @rule(request=st.sampled_from([OpenRequest(), MomentsRequest(), LedgerRequest(), EndRequest()]))
    def ask_plainly(self, request):
        self.hub.send(request)

    @rule(cls=st.sampled_from([JoinRequest, PrepareRequest]), standardizer=STANDARDIZERS)
    def prepare(self, cls, standardizer):
        self.hub.send(cls(standardizer))

    @rule(spec=SPECS)
    def open_session(self, spec):
        self.hub.send(OpenSessionRequest(spec))

    @rule(spec=SPECS, server_round=ROUNDS, vector=VECTORS)
    def open_and_fit(self, spec, server_round, vector):
        self.hub.send(OpenSessionRequest(spec))
        self.hub.send(FitRequest(spec.session, server_round, vector))

    @rule(standardizer=STANDARDIZERS, specs=st.lists(SPECS, max_size=3))
    def restore(self, standardizer, specs):
        self.hub.send(RestoreRequest(standardizer, tuple(specs)))

    @rule(session=SESSIONS)
    def close_session(self, session):
        self.hub.send(CloseSessionRequest(session))

    @rule(session=SESSIONS, server_round=ROUNDS, vector=VECTORS, silos=NAMES)
    def fit(self, session, server_round, vector, silos):
        self.hub.send(FitRequest(session, server_round, vector))
        assert self.hub.send(FitSumRequest(session, server_round, silos, (9,) * len(silos), vector)) is None

    @rule(session=SESSIONS, names=NAMES, vectors=st.lists(VECTORS, max_size=4), many=st.integers(1, 5))
    def evaluate(self, session, names, vectors, many):
        self.hub.send(EvaluateRequest(session, names, tuple(vectors)))
        repeated = tuple(f"{name}{number}" for name in names for number in range(many))
        self.hub.send(EvaluateRequest(session, repeated, tuple(vectors[:1]) * len(repeated)))
        assert self.hub.send(EvaluateManyRequest(session, names, names, tuple(vectors))) is None

    @rule(query=st.sampled_from([*sorted(QUERIES), "rows", "__init__", "queries"]), given=st.lists(GIVEN, max_size=5))
    def query(self, query, given):
        self.hub.send(QueryRequest(query, tuple(given)))

    @rule(
        query=st.sampled_from(sorted(QUERIES)), session=SESSIONS, server_round=ROUNDS, given=st.lists(GIVEN, max_size=2)
    )
    def query_in_form(self, query, session, server_round, given):
        start = (Given(value=session), Given(value=server_round))
        self.hub.send(QueryRequest(query, (*start, *given)))

    @rule(vector=VECTORS, num_examples=st.sampled_from([0, 1, 60, 2**53]))
    def observe(self, vector, num_examples):
        assert self.hub.send(ObserveRequest(vector, num_examples)) is None  # its owner says nothing of an audit

    @rule(weights=VECTORS, card=KEYS | VECTORS)
    def receive_model(self, weights, card):
        self.hub.send(ReceiveModelRequest(weights, card))

    @rule(
        verb=st.sampled_from([cls.__struct_config__.tag for cls in AnyRequest.__args__]),
        fields=st.dictionaries(
            st.sampled_from(["session", "vector", "spec", "invitation", "names", "vectors", "given", "query", "x"]),
            ANYTHING, max_size=4,
        ),
        payload=st.binary(max_size=64),
    )  # fmt: skip
    def send_anything(self, verb, fields, payload):
        self.hub.send_bytes(msgspec.msgpack.encode({"verb": verb, **fields}), payload)

    @rule(spec=SPECS, change=ANYTHING, place=st.integers(0, 30))
    def send_a_spec_with_one_wrong_field(self, spec, change, place):
        fields = asdict(spec)
        part = fields["plan"] if place % 2 else fields
        part[list(part)[place % len(part)]] = change
        self.hub.send_bytes(msgspec.msgpack.encode({"verb": "open_session", "spec": fields}), b"")

    @invariant()
    def the_budgets_hold(self):
        if not hasattr(self, "hub"):
            return
        assert self.hub.marked <= POLICY["max_evaluations_per_dataset"]
        assert self.owner.files_elsewhere() == []

    def teardown(self):
        if hasattr(self, "hub"):
            require_ledgers(self.owner, self.hub)
            assert honest_end(self.hub) == honest_bits(self.folder)


# ---- an honest run, before and after

ASKED = Invitation("honest", "north", "alloys", "property", OPTIONS)
PLAN = TrainingPlan(0, 2, 4, 2)


def honest_begin(hub: Coordinator) -> None:
    """What an honest coordinator asks first; the owner's book has its split from then on."""
    hub.send(InviteRequest(ASKED))
    hub.send(OpenRequest())


def honest_end(hub: Coordinator) -> tuple[bytes, bytes]:
    """Return the bits of the moments and of an update of an honest run."""
    assert hub.send(InviteRequest(ASKED)) is None
    assert hub.send(OpenRequest()).num_examples == 60
    moments = hub.send(MomentsRequest())
    hub.send(PrepareRequest(Standardizer.from_moments(moments)))
    session = f"honest-{hub.calls}"
    assert hub.send(OpenSessionRequest(SessionSpec(session, PLAN, 0, DIGEST))) == DIGEST
    update = hub.send(FitRequest(session, 1, np.full(SIZE, 0.01, np.float32)))
    return moments.digits.tobytes(), update.vector.tobytes()


_NUMBER = iter(range(10**9))
_HONEST: list[tuple[bytes, bytes]] = []


def make_owner(folder: Path, **policy) -> Owner:
    own = Path(folder) / f"case-{next(_NUMBER)}"
    own.mkdir()
    return Owner(own, **policy)


def honest_bits(folder: Path) -> tuple[bytes, bytes]:
    if not _HONEST:
        hub = Coordinator(make_owner(folder))
        honest_begin(hub)
        _HONEST.append(honest_end(hub))
    return _HONEST[0]


def require_ledgers(owner: Owner, hub: Coordinator) -> None:
    """Each message that left has its line, no line is of none, and no run had more bytes than its owner allows."""
    lines = owner.lines()
    written = Counter(line["kind"] for line in lines if line["kind"] in RELEASED)
    unsent = written - hub.kinds  # a line is written before the rest of joining fails
    assert hub.kinds <= written
    assert set(unsent) <= {"description"}
    for path in (owner.folder / "ledger").rglob("*.jsonl"):
        sizes = [json.loads(line).get("bytes", 0) for line in path.read_bytes().splitlines()]
        assert sum(sizes) <= POLICY["max_bytes_per_run"]
    assert not any(MARK in failure for failure in hub.failures)


class Asked:
    """Calls over a hub, one after another."""

    def __init__(self, hub: Hub):
        self.hub, self.calls = hub, 0

    def send(self, request: SiloRequest):
        """Return the message that answers; None for an error."""
        self.calls += 1
        ended: Queue = Queue()
        self.hub.ask("north", "north", request, lambda _, outcome: ended.put(outcome))
        outcome = ended.get(timeout=LONGEST_SECONDS)
        return None if isinstance(outcome, FedError) else outcome


def test_over_the_wire_an_honest_hub_after_a_hostile_one_gets_the_honest_bits(tmp_path):
    owner = make_owner(tmp_path)
    with hub_of(["north"]) as hub, running(agent("north", hub.port, [], make_host=owner)):
        assert hub.wait_for(["north"], 20) == []
        asked = Asked(hub)
        honest_begin(asked)
        for request in hostile_requests():
            asked.send(request)
        assert hub.is_connected("north")
        there = honest_end(asked)
    directly = Coordinator(make_owner(tmp_path))
    honest_begin(directly)
    assert there == honest_end(directly)


def hostile_requests() -> list[SiloRequest]:
    """Return some of each kind, each out of its place."""
    plan = replace(PLAN, epochs=10**9)
    specs = [SessionSpec(name, plan, 0, DIGEST, 10**12, 2) for name in ("../x", "a")]
    vector = np.full(3 * SIZE, np.nan, np.float32)
    elsewhere = replace(ASKED, dataset="/etc/passwd")
    return [
        FitRequest("a", 2**53, vector), InviteRequest(elsewhere), OpenRequest(),
        InviteRequest(ASKED), MomentsRequest(), JoinRequest(None),
        *map(OpenSessionRequest, specs), RestoreRequest(None, tuple(specs)),
        EvaluateRequest("a", ("m",) * 3, (vector,)), ObserveRequest(vector, 1), CloseSessionRequest("x"),
        QueryRequest("secure_unmask", (Given(value="a"), Given(value=1), Given(array=vector))),
        ReceiveModelRequest(vector, vector), FitSumRequest("a", 1, ("north",), (9,), vector), EndRequest(),
    ]  # fmt: skip


def test_the_hashes_of_a_fingerprint_are_the_owners_and_the_same_in_each_run(tmp_path):
    """Who knows all rows but one value could try values until the hash over all is the one told."""
    one, other = make_owner(tmp_path), make_owner(tmp_path)
    told = [host.open().fingerprint for host in (one(ASKED), one(replace(ASKED, run="next")), other(ASKED))]
    assert told[0] == told[1]
    assert told[0]["sha256"] != told[2]["sha256"]
    assert told[0]["num_rows"] == told[2]["num_rows"] == 60


def test_a_session_that_had_masks_gives_no_update_in_clear_when_its_silo_is_invited_anew(tmp_path):
    hub = Coordinator(make_owner(tmp_path))
    honest_end(hub)
    masked = SessionSpec("federated", PLAN, 0, DIGEST, secure_threshold=2)
    assert hub.send(OpenSessionRequest(masked)) == DIGEST
    hub.send(InviteRequest(ASKED))
    hub.send(JoinRequest(Standardizer(np.zeros(65), np.ones(65))))
    in_clear = replace(masked, secure_threshold=0)
    assert hub.send(OpenSessionRequest(in_clear)) is None
    assert hub.send(RestoreRequest(Standardizer(np.zeros(65), np.ones(65)), (in_clear,))) is None
    assert all("do not leave in clear" in failure for failure in hub.failures)
    assert len(hub.failures) == 2


def test_a_plan_whose_round_would_not_end_is_refused_in_every_way_that_asks_for_it(tmp_path):
    hub = Coordinator(make_owner(tmp_path))
    assert honest_end(hub)
    for epochs, steps, rounds in ((10**9, 1, 1), (1, 10**12, 10**12), (0, 1, 1), (1, 1, 0), (1, -1, 1)):
        spec = SessionSpec("long", TrainingPlan(0, epochs, steps, rounds), 0, DIGEST)
        assert hub.send(OpenSessionRequest(spec)) is None
        assert hub.send(RestoreRequest(None, (spec,))) is None
    assert hub.send(OpenSessionRequest(SessionSpec("large", PLAN, 0, DIGEST, kept_states=10**12))) is None
    assert len(hub.failures) == 11
    assert all("session refused by the silo's own perimeter" in failure for failure in hub.failures)


def test_whatever_a_hub_sends_it_gets_what_the_policy_allows_and_an_honest_run_follows(tmp_path):
    machine = type("Machine", (HostileHub,), {"folder": tmp_path})
    logging.getLogger("ray_fed.sites").setLevel(logging.CRITICAL)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=12, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        logging.getLogger("ray_fed.sites").setLevel(logging.NOTSET)
