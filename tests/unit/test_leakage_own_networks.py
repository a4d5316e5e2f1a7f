"""Networks of the user's: what they compute is traced, what can be solved is, and the rest is refused by reason."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.cli import main
from ray_fed.errors import ConfigError, DataError
from ray_fed.leakage.attacks import ATTACKS, DLG, IDLG, OURS, WDLG
from ray_fed.leakage.chain_kernel import ChainKernel
from ray_fed.leakage.fidelity import mean_squared_errors
from ray_fed.leakage.images import load_images
from ray_fed.leakage.labels import infer_labels
from ray_fed.leakage.layer_inversion import trace_of, why_no_chain
from ray_fed.leakage.observation import AttackObservation, Knowledge, observe
from ray_fed.leakage.own_network import OwnNetwork
from ray_fed.leakage.reconstruction import Problem, reconstruct
from ray_fed.leakage.tokens import recover_tokens

SHAPE = (1, 8, 8)


class Late(nn.Module):
    """Its output layer is registered first, beside a hidden layer that has as many units as there are classes."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.outputs = nn.Linear(10, num_classes)
        self.hidden = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs(torch.sigmoid(self.hidden(x.flatten(1))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.windows = nn.Conv2d(1, 16, 2, stride=2)
        self.places = nn.Parameter(torch.randn(1, 16, 16) * 0.02)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.outputs = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs(self.encoder(self.windows(x).flatten(2).transpose(1, 2) + self.places).mean(1))


class Words(nn.Module):
    def __init__(self, has_places: bool = True) -> None:
        super().__init__()
        self.table, self.outputs = nn.Embedding(20, 16), nn.Linear(16, 3)
        self.places = nn.Embedding(9, 16) if has_places else None
        self.mixed = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.table(x)
        if self.places is None:
            return self.outputs(found.mean(1))
        return self.outputs(self.mixed(found + self.places(torch.arange(x.shape[1]))).mean(1))


def convolutions(activation: type[nn.Module] = nn.Sigmoid, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, padding=2, stride=2, bias=bias), activation(), nn.Conv2d(12, 12, 3, padding=1, bias=bias),
        activation(), nn.Flatten(), nn.Linear(192, 10, bias=bias),
    )  # fmt: skip


def digit(count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = load_images("digits").sample(count, 3)
    return torch.from_numpy(drawn.images), torch.from_numpy(drawn.labels)


def seen(network: nn.Module, count: int = 1, **knows) -> AttackObservation:
    x, y = digit(count)
    x = x.to(next(network.parameters()).dtype)
    return observe(network, x, y, Knowledge(SHAPE, 10, count, **knows))


def error(network: nn.Module, budget: int = 4, attack=OURS, **knows) -> float:
    found = reconstruct([seen(network, **knows)], attack, budget, [0])
    return float(mean_squared_errors(found.inputs, digit()[0][None].to(found.inputs)).max())


NORMALISED = nn.Sequential(
    nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(), nn.Flatten(), nn.Linear(768, 10)
)


@pytest.mark.parametrize(
    "network",
    [convolutions(), convolutions(nn.LeakyReLU), convolutions(bias=False), convolutions().double(), NORMALISED.eval(),
     Late(), nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(64, 32, bias=False), nn.ELU()), nn.Linear(32, 10)),
     Transformer()],
    ids=["convolutions", "leaky", "no bias", "float64", "BatchNorm", "registered late", "nested MLP", "windows"],
)  # fmt: skip
def test_plain_modules_are_inverted_whatever_they_are_made_of(network):
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert error(network, budget=40) < 1e-3  # of 30 networks without biases four need more than 4 evaluations


def test_the_output_layer_is_the_one_that_makes_the_outputs():
    torch.manual_seed(0)
    x, y = digit(12)
    found = [infer_labels([observe(Late(), x[i : i + 1], y[i : i + 1], Knowledge(SHAPE, 10))]) for i in range(12)]
    assert torch.cat(found).flatten().tolist() == y.tolist()
    output = trace_of(seen(Late())).output
    assert output is not None
    assert (output.weight, output.is_logits) == ("outputs.weight", True)
    softmax = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1))
    with pytest.raises(ConfigError, match="comes after it"):
        infer_labels([seen(softmax)])


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10)), "max pooling"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 10)), "average pooling"),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)), "native_layer_norm"),
        (Transformer(), "one of several values"),
    ],
)
def test_what_is_no_chain_says_where_it_stops_being_one(network, reason):
    assert reason in why_no_chain(seen(network))


def test_frozen_layers_are_no_part_of_the_message_and_are_named():
    network = convolutions()
    network[0].weight.requires_grad_(False)
    one = seen(network)
    assert len(one.message) == 5
    assert "'0.weight' is not in the message" in why_no_chain(one)
    assert bool(torch.isfinite(reconstruct([one], OURS, 3, [0]).inputs).all())


def test_what_is_drawn_at_random_and_what_a_network_cannot_take_is_refused():
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5))
    with pytest.raises(ConfigError, match="layer '2' drops values at random"):
        seen(dropping.train())
    with pytest.raises(ConfigError, match="whole numbers"):
        observe(Words(), torch.zeros(1, 5, dtype=torch.long), torch.tensor([0]), Knowledge((5,), 3))
    frozen = nn.Linear(64, 10).requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter that is trained"):
        seen(nn.Sequential(nn.Flatten(), frozen))


def test_statistics_that_the_attacker_does_not_know_are_looked_for():
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(), nn.Linear(512, 10)
    )
    network(digit(8)[0])  # running statistics of its own
    problem = Problem([seen(network.eval(), statistics="unknown")], ATTACKS["l2_grey"])
    assert problem.statistics == ["1.running_mean", "1.running_var"]
    variables = problem.encode(digit()[0][:, None], [0])
    assert variables.shape == (1, 64 + 16)
    values, slopes = problem.slopes(variables, problem.labels, problem.network, problem.seen)
    assert float(values) > 0
    assert bool((slopes[0, 64:] != 0).any())
    with pytest.raises(ConfigError, match="no running statistics"):
        Problem([seen(convolutions(), statistics="unknown")], ATTACKS["l2_grey"])


# ---- plans


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_update_over_parts_of_a_batch_is_that_of_torchs_own_loop(optimizer):
    torch.manual_seed(0)
    network, (x, y) = convolutions(), digit(4)
    one = seen(network, 4, local_steps=4, learning_rate=0.01, minibatch=2, optimizer=optimizer)
    theirs = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)(network.parameters(), lr=0.01)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    for part in (slice(0, 2), slice(2, 4), slice(0, 2), slice(2, 4)):
        theirs.zero_grad()
        functional.cross_entropy(network(x[part]), y[part]).backward()
        theirs.step()
    for sent, old, new in zip(one.message, before, network.parameters(), strict=True):
        torch.testing.assert_close(sent, (old - new.detach()) / 0.01, rtol=1e-2, atol=1e-4)
    assert f"4 local {'Adam' if optimizer == 'adam' else 'SGD'} steps on parts of 2" in one.threat_model


def test_an_attack_that_runs_away_says_so_and_one_that_fits_says_how_well():
    torch.manual_seed(0)
    wild = reconstruct([seen(convolutions(), 4, local_steps=4, learning_rate=0.1, minibatch=2)],
                       replace(IDLG, optimizer="descent", learning_rate=1e6), 6, [0])  # fmt: skip
    assert wild.outcome(0).startswith(("diverged", "did not converge"))
    assert reconstruct([seen(convolutions())], OURS, 4, [0]).outcome(0).startswith("explains the message up to")


# ---- tokens


def test_tokens_are_named_and_put_in_order_by_learned_positions():
    torch.manual_seed(0)
    rows = torch.tensor([[3, 7, 7, 0, 19]])
    found = recover_tokens(observe(Words(), rows, torch.tensor([1]), Knowledge((5,), 3, vocabulary=20)))
    assert found.sequence is not None
    assert found.sequence.tolist() == rows[0].tolist()
    bag = recover_tokens(observe(Words(False), rows, torch.tensor([1]), Knowledge((5,), 3, vocabulary=20)))
    assert (bag.tokens.tolist(), bag.sequence) == ([0, 3, 7, 19], None)
    assert bag.counts is not None
    assert bag.counts.tolist() == [1, 1, 2, 1]
    with pytest.raises(ConfigError, match="table that is trained"):
        recover_tokens(seen(convolutions()))


# ---- the kernel of chains


def in_double(one: AttackObservation) -> AttackObservation:
    return replace(one, parameters=tuple(p.double() for p in one.parameters),
                   message=tuple(m.double() for m in one.message))  # fmt: skip


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("name", ["dlg", "cosine", "wdlg_filters"])
def test_the_kernel_of_chains_has_the_slopes_of_two_passes_of_autograd(activation, name):
    torch.manual_seed(0)
    one = in_double(seen(convolutions(activation), 2))
    problem = Problem([one], replace(ATTACKS[name], labels="joint" if name == "dlg" else "closed_form"))
    variables = problem.encode(torch.rand(1, 2, *SHAPE, dtype=torch.float64), [0])
    assert problem.kernel is not None
    mine = problem.slopes(variables, problem.labels, problem.network, problem.seen)
    problem.kernel = None
    torchs = problem.slopes(variables, problem.labels, problem.network, problem.seen)
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_kernel_leaves_alone_what_it_does_not_compute():
    assert not ChainKernel.fits(seen(Transformer()))
    assert not ChainKernel.fits(seen(convolutions(), 2, local_steps=2, learning_rate=0.1))
    assert not ChainKernel.fits(seen(convolutions(nn.GELU)))


class _Waits(TorchDispatchMode):
    """Counts the operations for which a GPU's queue is emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith(("aten._local_scalar_dense", "aten.nonzero"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attack", [DLG, OURS, WDLG], ids=lambda one: one.name)
def test_an_evaluation_waits_for_a_bounded_number_of_values(attack):
    torch.manual_seed(0)
    one = [seen(convolutions()), seen(convolutions())]
    counts = []
    for budget in (4, 14):
        with _Waits() as waits:
            reconstruct(one, replace(attack, tolerance=0.0, stops_as_torch=False), budget, [0, 1])
        counts.append(waits.count)
    most = 8 if attack.distance != "rows" else 8 + 2 * 100 * 6  # each Sinkhorn iteration looks once whether it may stop
    assert (counts[1] - counts[0]) / 10 <= most


# ---- the command


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_name_of_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late_nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, width=8):\n"
        "        super().__init__(); self.last = nn.Linear(width, num_classes); self.first = nn.Linear(64, width)\n"
        "    def forward(self, x): return self.last(torch.relu(self.first(x.flatten(1))))\n"
        "class Graphs(nn.Module):\n    graphs = True\n"
    )
    own = OwnNetwork("late_nets:Net", options=("width=12",))
    network = own.build(SHAPE, 10, 0)
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, "net.pt")
    again = replace(own, checkpoint="net.pt").build(SHAPE, 10, 5)
    assert torch.equal(again.state_dict()["last.weight"], network.state_dict()["last.weight"])
    with pytest.raises(DataError, match=r"last\.weight is"):
        OwnNetwork("late_nets:Net", "net.pt").build(SHAPE, 10, 0)
    torch.save({"last.weight": torch.zeros(10, 8)}, "half.pt")
    with pytest.raises(DataError, match=r"lacks first\.bias"):
        OwnNetwork("late_nets:Net", "half.pt").build(SHAPE, 10, 0)
    with pytest.raises(ConfigError, match="takes crystals as graphs"):
        OwnNetwork("late_nets:Graphs").build(SHAPE, 10, 0)
    with pytest.raises(ConfigError, match="takes num_classes, width"):
        replace(own, options=("depth=3",)).build(SHAPE, 10, 0)


def test_the_command_attacks_a_network_of_the_users_and_says_how_each_attack_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pooled_nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, num_classes))\n"
    )
    arguments = ["leakage", "--model", "pooled_nets:Net", "--data", "digits", "--images", "2", "--budget", "5",
                 "--attacks", "layers,idlg", "--out", "run", "--studies", "compare"]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "layers: 2 of 2 attack layers: the network is no chain of layers that can be inverted: max pooling" in said
    assert "idlg: 2 of 2 did not converge" in said


def test_a_run_that_lacks_nothing_but_its_report_starts_no_cluster(tmp_path, monkeypatch):
    from pipelines.leakage import pipeline

    monkeypatch.chdir(tmp_path)
    arguments = ["leakage", "--data", "digits", "--images", "2", "--budget", "3", "--attacks", "idlg", "--studies",
                 "compare", "--out", "run", "--cohort"]  # fmt: skip
    assert main([*arguments, "local"]) == 0
    (tmp_path / "run" / "summary.json").unlink()  # as if killed while it wrote its report
    monkeypatch.setattr(pipeline, "_runner", lambda config: pytest.fail(f"a cluster for nothing: {config.cohort}"))
    assert main([*arguments, "ray"]) == 0


# ---- files


def test_pictures_of_16_bits_keep_their_greys_and_others_are_asked_for_their_white(tmp_path):
    from PIL import Image

    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    for folder, values in (("a", deep), ("b", (deep // 257).astype(np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "one.png")
    images = load_images(str(tmp_path)).images
    np.testing.assert_allclose(images[0], deep[None] / 65535, atol=1e-6)
    np.testing.assert_allclose(images[0], images[1], atol=1 / 255)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "b" / "two.tif")
    with pytest.raises(DataError, match="which is white"):
        load_images(str(tmp_path))


def test_the_published_files_of_svhn_and_cifar_are_read_and_damaged_ones_refused(tmp_path):
    from scipy.io import savemat

    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (32, 32, 3, 4)).astype(np.uint8)
    savemat(tmp_path / "train_32x32.mat", {"X": pictures, "y": np.array([[1], [10], [9], [2]], np.uint8)})
    svhn = load_images(str(tmp_path / "train_32x32.mat"))
    assert svhn.labels.tolist() == [1, 0, 9, 2]
    np.testing.assert_allclose(svhn.images[1, 2], pictures[:, :, 2, 1] / 255, atol=1e-6)
    rows = draw.integers(0, 100, (3, 3074)).astype(np.uint8)
    rows.tofile(tmp_path / "train.bin")
    cifar = load_images(str(tmp_path / "train.bin"))
    assert cifar.labels.tolist() == rows[:, 1].tolist()
    assert (cifar.num_classes, cifar.shape) == (100, (3, 32, 32))
    np.testing.assert_allclose(cifar.images[0, 1, 0], rows[0, 2 + 1024 : 2 + 1056] / 255, atol=1e-6)
    (tmp_path / "cut.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(DataError, match="no whole rows of CIFAR-10"):
        load_images(str(tmp_path / "cut.bin"))
    (tmp_path / "other.mat").write_bytes(b"no such thing")
    with pytest.raises(DataError, match="SVHN"):
        load_images(str(tmp_path / "other.mat"))


def test_of_a_folder_only_the_pictures_that_are_drawn_are_read(tmp_path):
    from PIL import Image

    for person in ("Ada", "Bo"):
        (tmp_path / person).mkdir()
        for number in range(3):
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(tmp_path / person / f"{person}_{number}.png")
    drawn = load_images(str(tmp_path), count=2, seed=1)
    every = load_images(str(tmp_path))
    assert np.array_equal(drawn.images, every.sample(2, 1).images)
    for file in tmp_path.rglob("*.png"):
        grey = float(np.asarray(Image.open(file)).mean()) / 255
        if not any(abs(grey - float(image.mean())) < 1e-3 for image in drawn.images):
            file.write_bytes(b"damaged")
    assert len(load_images(str(tmp_path), count=2, seed=1)) == 2


def test_fewer_exchanges_of_the_same_training_give_less_away_and_to_a_list_only_the_last_step_of_it():
    from pipelines.leakage.frequency import frequency_leaks
    from ray_fed.leakage.tabular_study import crystal_rows

    features, targets, _ = crystal_rows(400, 0)
    leaks = list(frequency_leaks(features, targets, 0))
    assert [one.exchanges * one.local_steps for one in leaks] == [32] * 6
    assert leaks[0].found == leaks[0].named.right == 128
    assert leaks[-1].found == 0
    assert leaks[3].found < 0.1 * 128 < 0.9 * 128 < leaks[3].named.right
