"""The ring, the masks, the shares and the protocol of secure aggregation, each by itself."""

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from ray_fed.errors import SiloFailed
from ray_fed.exact_sum import ExactWeightedSum
from ray_fed.privacy.secure_sum import ring, shamir
from ray_fed.privacy.secure_sum.collector import SecureCollector
from ray_fed.privacy.secure_sum.masks import add_mask, public_key, shared_key
from ray_fed.privacy.secure_sum.member import Keys, SecureMember, _complaint, _signed_keys
from ray_fed.privacy.secure_sum.sealed import SealedShares
from ray_fed.privacy.secure_sum.wire import as_bytes, of_bytes

VECTORS = drawn.arrays(np.float32, 7, elements=st.floats(-1e6, 1e6, width=32))
WORDS = drawn.arrays(np.uint64, (5, 2), elements=st.integers(0, 2**64 - 1))


def as_int(element):
    return int(element[0]) + (int(element[1]) << 64)


# ---- the ring


def test_an_element_is_the_value_in_units_of_2_to_the_minus_66():
    elements = ring.encoded(np.array([1.0, -1.0, 2.0**-60, 0.0], np.float32), 3)
    assert [as_int(element) for element in elements] == [3 << 66, 2**128 - (3 << 66), 3 << 6, 0]


@given(WORDS, WORDS)
def test_addition_and_subtraction_are_those_of_whole_numbers_modulo_2_to_the_128(a, b):
    total, back = a.copy(), a.copy()
    ring.add(total, b)
    ring.subtract(back, b)
    for left, right, added, taken in zip(a, b, total, back, strict=True):
        assert as_int(added) == (as_int(left) + as_int(right)) % 2**128
        assert as_int(taken) == (as_int(left) - as_int(right)) % 2**128


@given(st.lists(st.tuples(VECTORS, st.integers(1, 10_000)), min_size=1, max_size=6))
def test_sums_in_the_ring_have_the_bits_of_the_exact_sum(summands):
    plain, total = ExactWeightedSum(7), np.zeros((7, 2), np.uint64)
    for vector, weight in summands:
        plain.add(vector, weight)
        ring.add(total, ring.encoded(vector, weight))
    back = ring.decoded(total, plain.total_weight, plain.num_summands)
    assert [part.tobytes() for part in back.parts()] == [part.tobytes() for part in plain.parts()]
    assert back.mean().tobytes() == plain.mean().tobytes()


def test_a_merged_sum_is_the_sum_of_all_its_summands():
    vectors = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    whole, first, second = (ExactWeightedSum(9) for _ in range(3))
    for number, vector in enumerate(vectors):
        whole.add(vector, number + 1)
        (first if number < 2 else second).add(vector, number + 1)
    first.merge(second)
    assert first.mean().tobytes() == whole.mean().tobytes()


# ---- masks and shares


def test_a_mask_added_and_taken_away_leaves_nothing_across_chunks():
    total = np.zeros((2 * ring.CHUNK + 3, 2), np.uint64)
    add_mask(total, b"k" * 32, is_added=True)
    assert len(np.unique(total)) > 0.99 * total.size
    add_mask(total, b"k" * 32, is_added=False)
    assert not total.any()


def test_masks_are_uniform_words():
    total = np.zeros((200_000, 2), np.uint64)
    add_mask(total, b"k" * 32, is_added=True)
    counts = np.bincount((total >> np.uint64(60)).reshape(-1).astype(int), minlength=16)
    assert ((counts - 25_000) ** 2 / 25_000).sum() < 40  # chi-squared, 15 degrees: 40 is beyond 1 in 2000


def test_both_ends_of_a_pair_have_one_key_and_another_for_every_purpose():
    alice = X25519PrivateKey.generate().private_bytes_raw()
    bob = X25519PrivateKey.generate().private_bytes_raw()
    assert shared_key(alice, public_key(bob), b"a") == shared_key(bob, public_key(alice), b"a")
    assert shared_key(alice, public_key(bob), b"a") != shared_key(alice, public_key(bob), b"b")


def test_a_public_key_that_would_give_everybody_the_same_secret_is_refused():
    with pytest.raises(ValueError, match="shared key"):
        shared_key(b"k" * 32, bytes(32), b"a")


@settings(max_examples=20)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.data())
def test_any_threshold_of_the_shares_gives_the_secret_back(secret, threshold, data):
    shares = dict(enumerate(shamir.split(secret, 6, threshold), 1))
    chosen = data.draw(st.sets(st.sampled_from(range(1, 7)), min_size=threshold))
    assert shamir.combine({number: shares[number] for number in chosen}) == secret


def test_fewer_shares_give_nothing():
    secret = bytes(range(32))
    shares = dict(enumerate(shamir.split(secret, 5, 3), 1))
    for pair in combinations(shares, 2):
        with pytest.raises(ValueError, match="too few"):
            shamir.combine({number: shares[number] for number in pair})


def test_a_threshold_above_the_shares_is_refused():
    with pytest.raises(ValueError, match="4 of 3 shares"):
        shamir.split(bytes(32), 3, 4)


@given(st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=4))
def test_bytes_on_the_wire_come_back(content):
    assert of_bytes(as_bytes(content)) == content


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"a": 1}', b'{"a": "zz"}', b"\xff"])
def test_anything_else_on_the_wire_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  (json, unicode and hexadecimal each have words of their own)
        of_bytes(np.frombuffer(text, np.uint8))


# ---- the protocol


NAMES = ("a", "b", "c", "d", "e")


def unsealed(shares):
    return {giver: {to: SealedShares.of_bytes(text) for to, text in given.items()} for giver, given in shares.items()}


class Round:
    """All five silos and the coordinator in one round; `gone` names silos that drop out before a phase."""

    def __init__(self, threshold=3, names=NAMES, **gone):
        self.gone = {phase: set(silos) for phase, silos in gone.items()}
        self.members = {name: SecureMember(name, "s", 1, threshold) for name in names}
        generator = np.random.default_rng(1)
        self.vectors = {name: generator.normal(size=11).astype(np.float32) for name in names}
        self.weights = {name: number + 1 for number, name in enumerate(names)}

    def there(self, silos, phase):
        return [name for name in silos if name not in self.gone.get(phase, ())]

    def run(self):
        roster = {name: self.members[name].keys() for name in self.there(self.members, "keys")}
        shares = {name: self.members[name].shares(roster) for name in self.there(roster, "shares")}
        delivered = self.there(shares, "deliver")
        for name in delivered:
            self.members[name].deliver({giver: shares[giver][name] for giver in shares if giver != name})
        self.collector = SecureCollector("s", 1, 11, roster, sorted(shares), unsealed(shares))
        self.masked = {}
        for name in self.there(delivered, "masked"):
            self.masked[name] = self.members[name].masked(self.vectors[name], self.weights[name])
            self.collector.add(name, self.masked[name])
        survivors = self.collector.survivors
        signed = {name: self.members[name].agree(survivors) for name in self.there(survivors, "agree")}
        return self.collector.sum({name: self.members[name].unmask(signed) for name in self.there(signed, "unmask")})

    def plain(self, names):
        total = ExactWeightedSum(11)
        for name in names:
            total.add(self.vectors[name], self.weights[name])
        return total


@pytest.mark.parametrize(
    ("gone", "counted"),
    [
        ({}, "abcde"),
        ({"keys": "b"}, "acde"),
        ({"shares": "b"}, "acde"),
        ({"deliver": "b"}, "acde"),
        ({"masked": "b"}, "acde"),
        ({"masked": "be"}, "acd"),
        ({"agree": "b"}, "abcde"),
        ({"unmask": "b"}, "abcde"),
        ({"masked": "a", "agree": "b"}, "bcde"),
        ({"keys": "a", "masked": "e"}, "bcd"),
        ({"shares": "a", "masked": "b", "unmask": ""}, "cde"),
        ({"masked": "ab", "unmask": ""}, "cde"),
    ],
)
def test_the_sum_is_that_of_the_silos_that_answered_whenever_others_drop_out(gone, counted):
    ours = Round(**gone)
    total, expected = ours.run(), ours.plain(counted)
    assert total.mean().tobytes() == expected.mean().tobytes()
    assert total.total_weight == expected.total_weight


def test_too_few_shares_show_no_sum():
    with pytest.raises(ValueError, match="too few"):
        Round(unmask="abc").run()


def test_what_the_coordinator_sees_of_one_silo_has_nothing_of_its_update():
    """The same update in two rounds: the masked words agree no more than random words do."""
    first, second = Round(), Round()
    first.run()
    second.run()
    difference = first.masked["a"] - second.masked["a"]
    assert not (difference == 0).any()
    assert not (first.masked["a"] == ring.encoded(first.vectors["a"], 1)[0]).any()


def test_the_masked_update_of_a_silo_that_came_too_late_stays_masked():
    """Its mask key is known by then; the mask from its own seed is not."""
    ours = Round(masked="b")
    ours.run()
    late = ours.members["b"].masked(ours.vectors["b"], 2)
    for name in "acde":
        key = shared_key(ours.members["b"]._mask, ours.members["b"].roster[name].mask, _pair())
        add_mask(late, key, is_added=name < "b")
    assert as_int(late[-1]) != 2
    assert not (late[:-1] == ring.encoded(ours.vectors["b"], 2)).any()


def _pair():
    from ray_fed.privacy.secure_sum.member import purpose

    return purpose("s", 1, "pair")


# ---- what a silo refuses


def fresh(threshold=3):
    members = {name: SecureMember(name, "s", 1, threshold) for name in NAMES}
    return members, {name: member.keys() for name, member in members.items()}


def ready(threshold=3):
    members, roster = fresh(threshold)
    shares = {name: member.shares(roster) for name, member in members.items()}
    for name, member in members.items():
        member.deliver({giver: shares[giver][name] for giver in shares if giver != name})
    return members


def test_a_silo_masks_once():
    members = ready()
    members["a"].masked(np.zeros(3, np.float32), 1)
    with pytest.raises(SiloFailed, match="no unused masks"):
        members["a"].masked(np.ones(3, np.float32), 1)


def test_a_silo_unmasks_once_so_that_no_other_list_of_names_is_answered():
    ours = Round()
    ours.run()
    with pytest.raises(SiloFailed, match="unmasks once"):
        ours.members["a"].unmask({})
    with pytest.raises(SiloFailed, match="it signs one list of names"):
        ours.members["a"].agree(["a", "b", "c"])


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ("ab", "2 updates are fewer than 3"),
        ("bcd", "its own update is called dropped"),
        ("abcc", "not those it masked for"),
        ("abcf", "not those it masked for"),
    ],
)
def test_a_silo_refuses_names_that_would_show_more_than_the_sum(survivors, reason):
    members = ready()
    members["a"].masked(np.zeros(3, np.float32), 1)
    with pytest.raises(SiloFailed, match=reason):
        members["a"].agree(list(survivors))


# ---- a coordinator that lies


def masked_by_all():
    members = ready()
    for member in members.values():
        member.masked(np.zeros(3, np.float32), 1)
    return members


def test_a_coordinator_that_shows_two_lists_of_names_gets_the_shares_of_neither():
    """Without signatures it would get three shares of e's mask key and two of its seed, then a third by another lie."""
    members = masked_by_all()
    with_e, without_e = list("abcde"), list("abcd")
    signed = {name: members[name].agree(with_e if name in "de" else without_e) for name in "abcde"}
    assert {name for name in "abc" if name in signed} == set("abc")
    with pytest.raises(SiloFailed, match="a silo signed that is not among the names"):
        members["a"].unmask(signed)
    with pytest.raises(SiloFailed, match="'d' did not sign the names that this silo signed: it was told others"):
        members["a"].unmask({name: signed[name] for name in "abcd"})
    with pytest.raises(SiloFailed, match="2 signatures of the names are fewer than 3"):
        members["d"].unmask({name: signed[name] for name in "de"})


def test_a_threshold_that_two_lists_could_both_reach_is_refused():
    members, roster = fresh(threshold=2)
    with pytest.raises(SiloFailed, match="a threshold of 2 among 5 silos could show two sums"):
        members["a"].shares(roster)


@pytest.mark.parametrize(
    ("of", "session", "server_round"),
    [("b", "s", 2), ("b", "another", 1), ("c", "s", 1)],
    ids=["round", "session", "silo"],
)
def test_keys_of_another_round_session_or_silo_are_refused(of, session, server_round):
    members, roster = fresh()
    other = SecureMember(of, session, server_round, 3, members["b"].signer)
    with pytest.raises(SiloFailed, match="the keys of silo 'b' are not signed by it for this round"):
        members["a"].shares(roster | {"b": other.keys()})


def test_a_silo_that_the_coordinator_invents_is_refused_where_the_owner_names_partners():
    members, roster = fresh()
    members["a"].partners = {name: keys.signer.hex() for name, keys in roster.items()}
    invented = {"b": SecureMember("b", "s", 1, 3).keys()}
    with pytest.raises(SiloFailed, match="'b' has not the key that 'partners'"):
        members["a"].shares(roster | invented)
    members["a"].shares(roster)
    members["c"].partners = {"a": roster["a"].signer.hex()}
    with pytest.raises(SiloFailed, match="'b' has not the key that 'partners'"):
        members["c"].shares(roster)


def test_a_silo_refuses_a_roster_that_is_too_small_or_twice_the_same_or_without_it():
    members, roster = fresh()
    with pytest.raises(SiloFailed, match="2 silos are fewer than 3"):
        members["a"].shares({name: roster[name] for name in "ab"})
    twin = SecureMember("e", "s", 1, 3, members["e"].signer)
    twin._channel, twin._mask = members["d"]._channel, members["d"]._mask
    with pytest.raises(SiloFailed, match="a public key is there twice"):
        members["a"].shares(roster | {"e": twin.keys()})
    with pytest.raises(SiloFailed, match="its own keys are not"):
        members["a"].shares(roster | {"a": SecureMember("a", "s", 1, 3).keys()})


def test_a_threshold_of_one_is_refused():
    with pytest.raises(SiloFailed, match="would show single updates"):
        SecureMember("a", "s", 1, 1)


def all_signed(members):
    return {name: member.agree(list(NAMES)) for name, member in members.items()}


def dealt():
    members, roster = fresh()
    return members, {name: member.shares(roster) for name, member in members.items()}


def to(receiver, shares):
    return {giver: given[receiver] for giver, given in shares.items() if giver != receiver}


def test_shares_that_were_changed_on_their_way_are_refused():
    members, shares = dealt()
    mine = to("a", shares)
    for position in (0, 70, 130, -1):
        changed = bytearray(mine["b"])
        changed[position] ^= 1
        with pytest.raises(SiloFailed, match="'b' are not what that silo sent"):
            members["a"].deliver(mine | {"b": bytes(changed)})
    with pytest.raises(SiloFailed, match="'b' are not what that silo sent"):
        members["a"].deliver(mine | {"b": mine["b"][:-1]})


def test_shares_meant_for_another_silo_are_refused():
    members, shares = dealt()
    with pytest.raises(SiloFailed, match="'c' are not what"):
        members["a"].deliver(to("a", shares) | {"c": shares["c"]["b"]})


def sealed_badly(dealer, receiver, how):
    """What a silo signs for another one, and what no silo can open, or is not what its hashes say."""
    way, both = dealer._way(dealer.silo, receiver), dealer._dealt[receiver][1]
    if how == "noise":
        return SealedShares.signed(dealer.signer, way, both, bytes(148)).to_bytes()
    ciphertext = dealer._cipher(receiver, dealer.silo, receiver).encrypt(bytes(12), both[::-1], None)
    return SealedShares.signed(dealer.signer, way, both, ciphertext).to_bytes()


@pytest.mark.parametrize("how", ["noise", "other shares than it says"])
def test_a_receiver_names_the_sender_of_shares_that_do_not_open(how):
    members, shares = dealt()
    shares["d"]["a"] = sealed_badly(members["d"], "a", how)
    complaints = members["a"].deliver(to("a", shares))
    assert set(complaints) == {"d"}
    keys = members["b"].roster["a"]
    assert keys.have_complained("d", shares["d"]["a"], complaints["d"], "s", 1)
    assert not keys.have_complained("c", shares["d"]["a"], complaints["d"], "s", 1)


def test_shares_are_shown_to_none_but_who_signed_that_they_do_not_open():
    members, shares = dealt()
    genuine = bytes.fromhex(members["a"].signer.sign(_complaint("s", 1, "b", shares["b"]["a"])))
    assert members["b"].show({"a": genuine}) == {"a": members["b"]._dealt["a"][1]}
    for wanted in ({"c": genuine}, {"a": bytes(64)}, {"b": genuine}, {"f": genuine}):
        with pytest.raises(SiloFailed, match=r"did not complain|complains that has no shares"):
            members["b"].show(wanted)
    of_others = bytes.fromhex(members["a"].signer.sign(_complaint("s", 1, "b", shares["b"]["c"])))
    with pytest.raises(SiloFailed, match="did not complain"):
        members["b"].show({"a": of_others})


def test_a_list_of_silos_gets_shorter_and_only_before_the_update():
    members, shares = dealt()
    mine = to("a", shares)
    fewer = {name: mine[name] for name in "bcd"}
    members["a"].deliver(mine)
    members["a"].deliver(fewer)
    assert set(members["a"].inbox) == set("abcd")
    with pytest.raises(SiloFailed, match="not in the roster"):
        members["a"].deliver(mine)
    with pytest.raises(SiloFailed, match="2 silos are fewer than 3"):
        members["a"].deliver({"b": mine["b"]})
    members["a"].masked(np.zeros(3, np.float32), 1)
    with pytest.raises(SiloFailed, match="before its update"):
        members["a"].deliver(fewer)


@pytest.mark.parametrize("channel", [bytes(32), b"", bytes(31), (1).to_bytes(32, "little")])
def test_keys_of_low_order_or_another_length_are_not_used(channel):
    members, roster = fresh()
    signer = members["b"].signer
    signed = bytes.fromhex(signer.sign(_signed_keys("b", "s", 1, channel, roster["b"].mask)))
    keys = Keys(channel, roster["b"].mask, bytes.fromhex(signer.public), signed)
    assert keys.are_of("b", "s", 1)
    assert not keys.are_usable
    with pytest.raises(SiloFailed, match="a public key of silo 'b' is none"):
        members["a"].shares(roster | {"b": keys})


def test_wrong_shares_take_no_mask_off():
    ours = Round()
    ours.run()
    first, second = (Round() for _ in range(2))
    for each, change in ((first, bytes(66)), (second, b"")):
        unmask = each.members["a"].unmask
        each.members["a"].unmask = lambda signed, unmask=unmask, change=change: dict.fromkeys(unmask(signed), change)
        assert each.run().mean().tobytes() == ours.plain("abcde").mean().tobytes()
