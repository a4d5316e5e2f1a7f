"""Segmentation on actors: the bits of one process, through the silos' gates."""

from dataclasses import replace

import pytest

from pipelines import Training, federate
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import initial_vector
from ray_fed.micrographs.segmentation_task import SegmentationTask
from ray_fed.micrographs.tiles import PolycrystalTileSource, SetSource
from ray_fed.micrographs.unet import UNetDesign

pytestmark = pytest.mark.usefixtures("ray_session")

TASK = SegmentationTask(UNetDesign(widths=(4, 8)), batch_size=4, num_scored=12)
TRAINING = Training(rounds=2, epochs=2, batch_size=3, learning_rate=0.01)


def silo(style: str) -> SiloSpec:
    own = PolycrystalTileSource(style, size=32, num_train=12, num_validation=12, spacing=14)
    tiles = own.open(style)
    return SiloSpec(style, SetSource(replace(tiles, synthetic=tiles.train.subset([0, 1]), test=tiles.validation)))


def test_silo_actors_train_to_the_bits_of_one_process():
    silos = [silo("austenite"), silo("iron")]
    test = SiloSpec(
        "test", PolycrystalTileSource("iron", first=90, size=32, num_train=12, num_validation=0, spacing=14)
    )
    local, ray = (federate(TASK, silos, TRAINING, test=test, cohort=where) for where in ("local", "ray"))
    assert initial_vector(local.module).tobytes() == initial_vector(ray.module).tobytes()
    assert local.metrics == ray.metrics
    assert {"federated.map", "silo.iron.test_map"} <= set(ray.metrics)
