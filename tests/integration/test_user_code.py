"""A project of several files: its packages travel with the task, whole, and what is missing is named."""

import pickle
import sys

import pytest
from ray import cloudpickle

from actors import user_code
from actors.user_code import Finder, code_of, travelling
from pipelines import Training, federate
from ray_fed import ConfigError, SiloSpec, TorchTask

FILES = {
    "mylab/__init__.py": "",
    "mylab/net.py": "from torch import nn\n\ndef network():\n    return nn.Linear(4, 2)\n",
    "mylab/data.py": """
import numpy as np
from . import util
import labtools

def samples(source):
    from mylab.late import noise
    x = np.random.default_rng(source).normal(size=(60, 4)).astype("f4") + noise() + labtools.SHIFT + util.SHIFT
    return x[20:], (x[20:, 0] > 0).astype("i8"), x[:20], (x[:20, 0] > 0).astype("i8")
""",
    "mylab/util.py": "SHIFT = 0.0\n",
    "mylab/late.py": "def noise():\n    return 0.0\n",
    "labtools.py": "SHIFT = 0.0\n",
    "mystrategy.py": """
from dataclasses import dataclass
from ray_fed import FedAvg
from mylab.util import SHIFT

@dataclass(frozen=True)
class Mine(FedAvg):
    extra: float = SHIFT
""",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder, on the path of this process alone."""
    before = set(sys.modules)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, Finder)]
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mylab", "labtools", "mystrategy"):
            del sys.modules[name]


def elsewhere(project, monkeypatch):
    """Forget the project, as a process that has never seen it."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(project)])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mylab", "labtools")]:
        del sys.modules[name]


def test_a_task_of_several_files_trains_on_actors_as_in_one_process(project, ray_session):  # noqa: ARG001
    from mylab.data import samples  # type: ignore[import-not-found]
    from mylab.net import network  # type: ignore[import-not-found]
    from torch.nn import functional

    task, silos = TorchTask(network, functional.cross_entropy, samples), [SiloSpec("a", 1), SiloSpec("b", 2)]
    metrics = [
        federate(task, silos, Training(rounds=2, epochs=2), cohort=cohort, strategy="mystrategy:Mine").metrics
        for cohort in ("local", "ray")
    ]
    assert metrics[0] == metrics[1]


def test_the_whole_package_travels_with_what_it_imports_and_nothing_that_is_installed(project):  # noqa: ARG001
    from mylab.data import samples  # type: ignore[import-not-found]

    assert set(code_of(samples)) == {"mylab", "mylab.net", "mylab.data", "mylab.util", "mylab.late", "labtools"}
    assert code_of(TorchTask) == {}


def test_modules_that_are_imported_late_are_there_too(project, monkeypatch):
    from mylab.data import samples  # type: ignore[import-not-found]

    content = cloudpickle.dumps(travelling({"samples": samples}))
    elsewhere(project, monkeypatch)
    found = pickle.loads(content)["samples"]
    assert found is not samples
    assert len(found(1)[0]) == 40
    assert isinstance(sys.modules["mylab.late"].__loader__, Finder)
    assert code_of(found).keys() == code_of(samples).keys()  # it can be sent on from there


def test_a_newer_version_replaces_the_one_that_came_before(project, monkeypatch):
    from mylab import util  # type: ignore[import-not-found]

    first = cloudpickle.dumps(travelling(util.__name__))
    (project / "mylab" / "util.py").write_text("SHIFT = 1.0\n")
    second = cloudpickle.dumps(travelling(util.__name__))
    elsewhere(project, monkeypatch)
    shifts = []
    for content in (first, first, second):
        pickle.loads(content)
        from mylab.util import SHIFT  # type: ignore[import-not-found]

        shifts.append(SHIFT)
    assert shifts == [0.0, 0.0, 1.0]


def test_an_import_that_fails_is_named(project, monkeypatch):
    from mylab.net import network  # type: ignore[import-not-found]

    content = cloudpickle.dumps(travelling(network))
    content = content.replace(b"from torch import nn", b"import not_there_abc")
    elsewhere(project, monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="not_there_abc"):
        pickle.loads(content)


def test_a_package_too_large_to_travel_is_to_be_installed(project, monkeypatch):  # noqa: ARG001
    from mylab.net import network  # type: ignore[import-not-found]

    monkeypatch.setattr(user_code, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match=r"package 'mylab' .* install it where the silos are"):
        code_of(network)
