"""What an owner insists on holds in every way an update can be asked for, and over sessions, runs and restarts."""

import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest

from ray_fed.errors import ConfigError, DataError, PerimeterRefused, SiloFailed
from ray_fed.federation.messages import Artifact, MaskedUpdate, SessionSpec, Update
from ray_fed.federation.silo import Silo
from ray_fed.learning.layout import Layout
from ray_fed.learning.private_steps import PrivateSteps
from ray_fed.learning.trainer import LocalTrainer
from ray_fed.perimeter.book import Book
from ray_fed.perimeter.guarded_silo import GuardedSilo
from ray_fed.perimeter.policy import Policy
from ray_fed.privacy.accounting import PrivacyAccount, composed_epsilon
from ray_fed.privacy.secure_sum.member import Keys, SecureMember
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes
from ray_fed.privacy.signing import SigningKey
from tests.boundaries import PLAN, guarded, spec, vector_of, write_site
from tests.synthetic import SyntheticTask

PARTNER = SigningKey.passing()
MASKS = f"perimeter: {{masks: required}}\npartners:\n  south: '{PARTNER.public}'\n"
NOISY = PrivateSteps(2.0, clip=0.5, public_examples=60)


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_FED_SITE", str(tmp_path / "site"))
    return tmp_path / "site"


def session(boundary, name="s", threshold=0, **changes):
    digest = Layout.of(boundary.silo.task.model(0)).digest
    return SessionSpec(name, replace(PLAN, **changes), 0, digest, secure_threshold=threshold)


def exchanged(boundary, name="s", server_round=1, signer=PARTNER):
    """Keys and shares with a partner, as a coordinator hands them around; the partner's part, too."""
    mine = Keys(**of_bytes(boundary.query("secure_keys", name, server_round).data))
    other = SecureMember("south", name, server_round, 2, signer)
    roster = {"north": mine, "south": other.keys()}
    told = as_bytes({f"{part}.{silo}": value for silo, keys in roster.items() for part, value in vars(keys).items()})
    boundary.query("secure_shares", name, server_round, told)
    boundary.query("secure_deliver", name, server_round, as_bytes({"south": other.shares(roster)["north"]}))


# ---- masks


def test_with_masks_required_an_update_leaves_under_masks(tmp_path, site):
    write_site(site, MASKS)
    boundary = guarded(tmp_path)
    boundary.open_session(session(boundary, threshold=2))
    exchanged(boundary)
    assert type(boundary.fit("s", 1, vector_of(boundary))) is MaskedUpdate


class AnswersInClear(Silo):
    def queries(self):
        return {"update": lambda: Artifact("north", "update", 60, {"loss": 1.0}, np.zeros(8, np.uint8))}


CLEAR_WAYS = {
    "a session without masks": lambda one: one.open_session(session(one)),
    "another name": lambda one: one.open_session(session(one, "plain")),
    "a restart": lambda one: one.restore(None, [session(one)]),
    "a restart under another name": lambda one: one.restore(None, [session(one, "plain")]),
    "a further question": lambda one: one.query("update"),
    "a single gradient": lambda one: one.observe(vector_of(one), 10),
}


@pytest.mark.parametrize("way", CLEAR_WAYS)
@pytest.mark.parametrize("policy", ["masks: required", "noise: required"])
def test_an_update_in_clear_is_refused_in_every_way_it_can_be_asked_for(tmp_path, site, way, policy):
    write_site(site, MASKS.replace("masks: required", policy))
    boundary = guarded(tmp_path, AnswersInClear)
    with pytest.raises(PerimeterRefused, match=r"required|audit"):
        CLEAR_WAYS[way](boundary)
    with pytest.raises(SiloFailed, match="no session"):
        boundary.fit("plain", 1, vector_of(boundary))


@pytest.mark.parametrize("owner", [MASKS, ""])
@pytest.mark.parametrize("way", ["opened again", "closed and opened again", "restored"])
def test_a_session_that_had_masks_is_not_opened_again_in_clear(tmp_path, site, owner, way):
    """Whatever the owner says: the same rounds give the same updates."""
    if owner:
        write_site(site, owner)
    boundary = guarded(tmp_path)
    boundary.open_session(session(boundary, threshold=2))
    exchanged(boundary)
    assert type(boundary.fit("s", 1, vector_of(boundary))) is MaskedUpdate
    if way.startswith("closed"):
        boundary.close_session("s")
    with pytest.raises(PerimeterRefused, match="under masks"):
        boundary.restore(None, [session(boundary)]) if way == "restored" else boundary.open_session(session(boundary))


def test_a_silo_that_was_started_again_remembers_which_sessions_had_masks_where_its_owner_keeps_a_book(tmp_path, site):
    write_site(site, f"ledger: {site}/kept")
    boundary = guarded(tmp_path)
    boundary.open_session(session(boundary, threshold=2))
    again = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match="under masks"):
        again.restore(None, [session(again)])
    again.open_session(session(again, "another"))
    again.restore(None, [session(again, threshold=2)])


def test_a_silo_that_forgets_its_masks_lets_nothing_out(tmp_path):
    """What the gate goes by is what was opened, not what the silo's own code says."""

    class Forgets(Silo):
        def open_session(self, spec):
            return super().open_session(replace(spec, secure_threshold=0))

    boundary = guarded(tmp_path, Forgets)
    boundary.open_session(session(boundary, threshold=2))
    with pytest.raises(SiloFailed):
        boundary.fit("s", 1, vector_of(boundary))


@pytest.mark.parametrize("again", ["opened", "closed and opened"])
def test_a_round_has_one_set_of_keys_however_often_its_session_is_opened(tmp_path, again):
    boundary = guarded(tmp_path)
    boundary.open_session(session(boundary, threshold=2))
    exchanged(boundary)
    boundary.fit("s", 1, vector_of(boundary))
    if again.startswith("closed"):
        boundary.close_session("s")
    boundary.open_session(session(boundary, threshold=2))
    with pytest.raises(SiloFailed, match="its part of secure aggregation failed"):
        boundary.query("secure_keys", "s", 1)
    exchanged(boundary, server_round=2)


def test_with_masks_required_partners_must_be_named_and_others_are_not_masked_with(tmp_path, site):
    write_site(site, "perimeter: {masks: required}")
    boundary = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match="names no partners: a coordinator could invent them"):
        boundary.open_session(session(boundary, threshold=2))
    write_site(site, MASKS)
    boundary = guarded(tmp_path)
    boundary.open_session(session(boundary, threshold=2))
    with pytest.raises(SiloFailed, match="its part of secure aggregation failed"):
        exchanged(boundary, signer=SigningKey.passing())


@pytest.mark.parametrize("demand", ["masks: required", "noise: required", "epsilon_budget: 3"])
def test_an_owner_cannot_demand_protection_and_allow_an_audit(demand):
    name, value = demand.split(": ")
    with pytest.raises(ConfigError, match="audit: true shows single gradients as they are"):
        Policy(audit=True, **{name: float(value) if value == "3" else value})


# ---- noise

NOISE = "perimeter: {noise: required, min_noise_multiplier: 1.5, max_clip: 1.0}"


@pytest.mark.parametrize(
    ("private", "said"),
    [
        (None, "it has no noise"),
        (replace(NOISY, noise_multiplier=1.2), "below min_noise_multiplier=1.5"),
        (replace(NOISY, clip=1.5), "above max_clip=1"),
    ],
)
def test_with_noise_required_too_little_of_it_is_refused(tmp_path, site, private, said):
    write_site(site, NOISE)
    boundary = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match=said):
        boundary.open_session(session(boundary, private=private))
    boundary.open_session(session(boundary, private=NOISY))
    assert type(boundary.fit("s", 1, vector_of(boundary))) is Update


def test_with_noise_required_a_trainer_of_the_tasks_own_is_refused(tmp_path, site):
    write_site(site, NOISE)

    class Plain(LocalTrainer):
        pass

    class OwnTrainer(SyntheticTask):
        def trainer(self, samples, session, silo):
            module = self.model(session.model_seed)
            plan = replace(session.plan, private=None)
            return Plain(module, self.loss, samples.features, samples.targets, plan, silo.name)

    boundary = guarded(tmp_path, task=OwnTrainer())
    with pytest.raises(PerimeterRefused, match="trains in a way of its own"):
        boundary.open_session(session(boundary, private=NOISY))
    with pytest.raises(PerimeterRefused, match="trains in a way of its own"):
        boundary.restore(None, [session(boundary, private=NOISY)])


# ---- the budget


def with_budget(site, budget):
    write_site(site, f"ledger: {site}/kept\nperimeter: {{epsilon_budget: {budget}, min_noise_multiplier: 0.5}}")


def test_the_budget_is_of_the_data_set_over_sessions_runs_silos_and_restarts(tmp_path, site):
    """Each round of PLAN has 8 steps; two rounds are allowed, whoever asks and under whatever name."""
    account = PrivacyAccount("example", 2.0, 1 / PLAN.steps_per_epoch)
    with_budget(site, 0.5 * (account.epsilon(16) + account.epsilon(24)))
    boundary = guarded(tmp_path)
    boundary.open_session(session(boundary, private=NOISY))
    boundary.fit("s", 1, vector_of(boundary))
    boundary.open_session(session(boundary, "another", private=NOISY))
    boundary.fit("another", 1, vector_of(boundary))
    with pytest.raises(PerimeterRefused, match=r"of epsilon_budget=.* are left"):
        boundary.fit("another", 2, vector_of(boundary))
    for changes in ({}, {"run": "another run"}, {"name": "another silo"}):
        other = replace(spec(tmp_path), **changes)
        again = GuardedSilo(other, lambda other=other: Silo(other, SyntheticTask(num_features=20, hidden=(64,))))
        again.open(), again.prepare(None)
        again.open_session(session(again, private=NOISY))
        with pytest.raises(PerimeterRefused, match=r"would bring epsilon from .* are left"):
            again.fit("s", 1, vector_of(again))
    other = replace(spec(tmp_path), dataset="oxides")
    again = GuardedSilo(other, lambda: Silo(other, SyntheticTask(num_features=20, hidden=(64,))))
    again.open(), again.prepare(None)
    again.open_session(session(again, private=NOISY))
    assert type(again.fit("s", 1, vector_of(again))) is Update


def test_a_budget_without_a_folder_that_lasts_is_refused_with_the_remedy(tmp_path, site):
    write_site(site, "perimeter: {epsilon_budget: 10}")
    boundary = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match="needs a folder that lasts: name one there under 'ledger'"):
        boundary.open_session(session(boundary, private=NOISY))


def test_a_budget_lets_nothing_out_that_it_does_not_count(tmp_path, site):
    with_budget(site, 10)
    boundary = guarded(tmp_path)
    with pytest.raises(PerimeterRefused, match="it has no noise"):
        boundary.open_session(session(boundary))


def test_steps_are_on_the_disk_before_they_are_taken_so_that_a_kill_spends_them(tmp_path):
    code = f"""
        import os, signal
        from pathlib import Path
        from ray_fed.perimeter.book import Book
        assert Book(Path({str(tmp_path)!r})).take_steps("d", (1.0, 0.1), 30, 8.0, 1e-5) == ""
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Book(tmp_path).epsilon("d", 1e-5) == PrivacyAccount("example", 1.0, 0.1).epsilon(30)
    assert "are left" in Book(tmp_path).take_steps("d", (1.0, 0.1), 3000, 8.0, 1e-5)
    assert (tmp_path / "book.json").stat().st_mode & 0o777 == 0o600


def test_two_silos_write_into_one_book_without_losing_a_line(tmp_path):
    code = f"""
        from pathlib import Path
        from ray_fed.perimeter.book import Book
        for _ in range(40):
            assert not Book(Path({str(tmp_path)!r})).take_evaluations("d", "r", 1, 1000, 1000)
    """
    writers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    with Book(tmp_path).page("d") as page:
        assert page["num_evaluations"] == 80


@pytest.mark.parametrize("content", ["[]", "{", '{"d": 3}', "[" * 100_000])
def test_a_damaged_book_stops_what_it_counts(tmp_path, content):
    (tmp_path / "book.json").write_text(content)
    with pytest.raises(DataError, match=r"damaged|no book"):
        Book(tmp_path).take_evaluations("d", "r", 1, 10, 10)


def test_a_book_that_others_can_write_is_not_believed(tmp_path):
    (tmp_path / "book.json").write_text("{}")
    (tmp_path / "book.json").chmod(0o666)
    with pytest.raises(DataError, match="others can write into this book"):
        Book(tmp_path).take_evaluations("d", "r", 1, 10, 10)


def test_epsilon_of_several_kinds_of_steps_is_that_of_all_together():
    one, two = (1.0, 0.1), (2.0, 0.25)
    assert composed_epsilon({one: 30}, 1e-5) == PrivacyAccount("example", *one).epsilon(30)
    both = composed_epsilon({one: 30, two: 10}, 1e-5)
    assert max(composed_epsilon({one: 30}, 1e-5), composed_epsilon({two: 10}, 1e-5)) < both
    assert both < composed_epsilon({one: 30}, 1e-5) + composed_epsilon({two: 10}, 1e-5)
    assert composed_epsilon({}, 1e-5) == 0.0
