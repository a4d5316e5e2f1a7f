"""Segmentation on actors: the bits of one process, through the silos' gates."""

import pytest

from pipelines import Training, federate
from ray_fed.federation.task import SiloSpec
from ray_fed.learning.layout import initial_vector
from ray_fed.micrographs.polycrystals import polycrystal_set
from ray_fed.micrographs.segmentation_task import SegmentationTask
from ray_fed.micrographs.tiles import SetSource, SiloTiles
from ray_fed.micrographs.unet import UNetDesign

pytestmark = pytest.mark.usefixtures("ray_session")

TASK = SegmentationTask(UNetDesign(widths=(4, 8)), batch_size=4, num_scored=12)
TRAINING = Training(rounds=2, epochs=2, batch_size=3, learning_rate=0.01)


def silo(style: str) -> SiloSpec:
    tiles = polycrystal_set(style, 0, 24, size=32, spacing=14)
    train, validation = tiles.subset(range(12)), tiles.subset(range(12, 24))
    return SiloSpec(style, SetSource(SiloTiles(train, validation, train.subset([0, 1]), test=validation)))


def test_silo_actors_train_to_the_bits_of_one_process():
    silos = [silo("austenite"), silo("iron")]
    tiles = polycrystal_set("iron", 0, 12, size=32, first=90, spacing=14)
    test = SiloSpec("test", SetSource(SiloTiles(tiles, tiles.subset([]))))
    local, ray = (federate(TASK, silos, TRAINING, test=test, cohort=where) for where in ("local", "ray"))
    assert initial_vector(local.module).tobytes() == initial_vector(ray.module).tobytes()
    assert local.metrics == ray.metrics
    assert {"federated.map", "silo.iron.test_map"} <= set(ray.metrics)
