"""Weight codecs and the artifact: what fits, what is refused, and in which words."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ray_fed.errors import DataError
from ray_fed.style_transfer.artifact import (
    BITS,
    MAGIC,
    decode,
    encode,
    encoded_size,
    make_artifact,
    packed,
    psnr,
    unpacked,
)
from ray_fed.style_transfer.image_features import GrainStatistics
from ray_fed.style_transfer.networks import GeneratorSpec, new_generator

SPEC = GeneratorSpec("unet", width=4, depth=2)
GRAINS = GrainStatistics(0.4, 0.3, 0.1, 0.2)


def artifact(bits=8, spec=SPEC, silo="a"):
    module = new_generator(spec, 0)
    return make_artifact(silo, module, spec, bits, num_images=5, validation_l1=0.1, line_width_px=3.0, grains=GRAINS)


def message(bits=8, **header):
    """Return the bytes of an artifact whose header was changed by hand."""
    data = packed(artifact(bits))
    length = int.from_bytes(data[8:12].tobytes(), "little")
    fields = json.loads(data[12 : 12 + length].tobytes())
    for key, value in header.items():
        if isinstance(value, dict):
            fields[key].update(value)
        else:
            fields[key] = value
    text = json.dumps(fields).encode()
    head = np.frombuffer(MAGIC + len(text).to_bytes(4, "little") + text, np.uint8)
    return np.concatenate([head, data[12 + length :]])


def test_int8_weights_are_multiples_of_a_channels_largest_value_over_127():
    weights = np.array([[1.27, -0.638, 0.004], [0.0, 0.0, 0.0]], np.float32)
    (back,) = decode(encode([weights], 8), [(2, 3)], 8)
    np.testing.assert_allclose(back[0], [1.27, -0.64, 0.0], atol=2e-3)
    assert (back[1] == 0).all()


def test_4_bits_keep_fifteen_levels_and_pack_two_in_a_byte():
    weights = np.linspace(-7, 7, 15, dtype=np.float32)[None]
    buffer = encode([weights], 4)
    assert len(buffer) == 2 + 8
    np.testing.assert_allclose(decode(buffer, [(1, 15)], 4)[0], weights, rtol=1e-3)


def test_fp32_is_exact_and_fp16_is_half_as_large():
    weights = [np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)]
    np.testing.assert_array_equal(decode(encode(weights, 32), [(3, 4)], 32)[0], weights[0])
    assert len(encode(weights, 16)) * 2 == len(encode(weights, 32))


@given(arrays(np.float32, (3, 5), elements=st.floats(-8, 8, width=32)), st.sampled_from([4, 8]))
@settings(max_examples=60)
def test_rounding_is_off_by_at_most_half_a_step_of_its_channel(weights, bits):
    (back,) = decode(encode([weights], bits), [weights.shape], bits)
    step = np.abs(weights).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    # The scale itself is half precision: 2^-11 relative, or 2^-24 absolute below the normal range, times the number.
    slack = np.abs(weights) * 2.0**-10 + 2.0**-24 * 2 ** (bits - 1)
    assert (np.abs(back - weights) <= step / 2 + slack + step * 1e-2).all()


@pytest.mark.parametrize("bits", BITS)
def test_the_size_of_a_buffer_is_known_before_it_is_made(bits):
    shapes = [(3, 5), (3,), (1, 7)]
    made = encode([np.ones(shape, np.float32) for shape in shapes], bits)
    assert len(made) == encoded_size(shapes, bits)


def test_psnr_of_an_error_of_a_tenth_of_the_range_is_20_db():
    assert psnr(np.zeros(4), np.full(4, 0.2), 2.0) == pytest.approx(20.0)


@pytest.mark.parametrize("bits", BITS)
def test_a_generator_comes_out_of_its_message_as_the_codec_left_it(bits):
    sent = artifact(bits)
    got = unpacked(packed(sent), "a")
    assert got.header == sent.header
    for ours, theirs in zip(sent.generator().parameters(), got.generator().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_int8_is_nearly_four_times_smaller_and_paints_nearly_the_same():
    spec = GeneratorSpec("unet", width=16, depth=3)
    full, small = artifact(32, spec), artifact(8, spec)
    assert 3.8 < full.num_bytes / small.num_bytes < 4
    x = torch.randn(1, spec.num_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    assert psnr(full.generator()(x).numpy(), small.generator()(x).numpy(), 2.0) > 40


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bits": 5}, "bits=5"),
        ({"silo": "b"}, "of silo 'b'"),
        ({"num_images": 0}, "num_images=0"),
        ({"validation_l1": -1.0}, "validation_l1=-1.0"),
        ({"surprise": 1}, "surprise"),
        ({"generator": {"width": 8}}, "of width 8 has"),
        ({"generator": {"architecture": "residual"}}, "residual generator of width 4 has"),
        ({"generator": {"architecture": "transformer"}}, "architecture='transformer'"),
        ({"generator": {"width": 10**9}}, "must lie between 1 and 256"),
        ({"generator": {"inputs": ["label", "photo"]}}, "photo"),
        ({"grains": {"band_share": float("nan")}}, "NaN is no number"),
        ({"sha256": "0" * 64}, "checksum"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_with_the_senders_name(changed, said):
    with pytest.raises(DataError, match="generator received from silo 'a' refused") as error:
        unpacked(message(**changed), "a")
    assert said in str(error.value)


def test_a_damaged_a_cut_and_a_foreign_message_are_refused():
    good = packed(artifact())
    damaged = good.copy()
    damaged[-1] ^= 1
    for bad, said in (
        (damaged, "checksum"),
        (good[:-1], "these are"),
        (good[:6], "does not begin"),
        (good[:40], "claims"),
        (good.astype(np.float32), "float32"),
        (b"pickle", "a bytes"),
    ):
        with pytest.raises(DataError, match="silo 'a' refused") as error:
            unpacked(bad, "a")
        assert said in str(error.value)


def test_weights_that_are_not_finite_are_refused_on_both_sides():
    module = new_generator(SPEC, 0)
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(DataError, match="silo 'a' as int8: the weights are not finite"):
        make_artifact("a", module, SPEC, 8, num_images=1, validation_l1=0, line_width_px=3, grains=GRAINS)
    sent = artifact(32)
    buffer = sent.buffer.copy()
    buffer[:4].view(np.float32)[0] = np.inf
    import hashlib

    header = dataclasses.replace(sent.header, sha256=hashlib.sha256(buffer.tobytes()).hexdigest())
    with pytest.raises(DataError, match="silo 'a' refused: its weights are not finite"):
        unpacked(packed(dataclasses.replace(sent, header=header, buffer=buffer)), "a")


def test_a_message_above_the_limit_is_refused_unread():
    with pytest.raises(DataError, match="artifact_limit"):
        unpacked(packed(artifact()), "a", limit=100)


def test_reading_an_artifact_never_writes_into_the_received_memory():
    received = packed(artifact())
    received.flags.writeable = False
    unpacked(received, "a").generator()
