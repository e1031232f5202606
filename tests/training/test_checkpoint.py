import torch
from torch import nn
from torch.nn import functional as F

from patchscaler.training.checkpoint import TrainingState, load_adversary, save_adversary
from patchscaler.training.discriminator import PixelDiscriminator


def new_state(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    parameters = dict(network.named_parameters())
    averages = {name: value.detach().clone() for name, value in parameters.items() if name[0] != "2"}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.1)
    return network, TrainingState(parameters, averages, dict(network.named_buffers()), optimizer)


def learn(network, state, steps):
    for step in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        F.mse_loss(network(x), x[:, :2]).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        for name, average in state.averages.items():
            average.lerp_(state.parameters[name].detach(), 0.5)


def everything(network, state):
    return [*network.state_dict().values(), *state.averages.values()]


def test_what_was_saved_goes_on_as_if_it_had_not_stopped(tmp_path):
    network, state = new_state(0)
    learn(network, state, 3)
    state.save(tmp_path / "state", step=3, elapsed=1.5)
    resumed, other = new_state(1)
    assert other.load(tmp_path / "state") == {"step": 3, "elapsed": 1.5}
    for _ in range(2):
        for ours, theirs in zip(everything(resumed, other), everything(network, state), strict=True):
            assert torch.equal(ours, theirs)
        learn(network, state, 2)
        learn(resumed, other, 2)


def test_a_state_of_a_new_run_can_be_saved(tmp_path):
    network, state = new_state(0)
    state.save(tmp_path, step=0, elapsed=0.0)
    resumed, other = new_state(1)
    other.load(tmp_path)
    assert torch.equal(resumed[0].weight, network[0].weight)


def test_saving_replaces_the_former_state_and_leaves_nothing_else(tmp_path):
    network, state = new_state(0)
    assert not TrainingState.exists(tmp_path)
    for step in (1, 2):
        learn(network, state, 1)
        state.save(tmp_path, step=step)
    assert TrainingState.exists(tmp_path)
    assert state.load(tmp_path) == {"step": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_an_adversary_is_kept_beside_the_model(tmp_path):
    adversary, again = PixelDiscriminator(width=4, scales=1), PixelDiscriminator(width=4, scales=1)
    load_adversary(tmp_path, again)  # nothing there yet
    assert not list(tmp_path.iterdir())
    save_adversary(tmp_path, adversary)
    load_adversary(tmp_path, again)
    for name, value in adversary.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
