import pytest
import torch

from patchscaler.sampling.noise import _mix, patch_noise, to_word
from patchscaler.sampling.schedule import mid_state, noise_level, signal, solver_step, start_state


@pytest.fixture
def states():
    return torch.randn(3, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)


def test_signal_and_noise_keep_unit_variance():
    times = torch.linspace(0, 1, 11)
    torch.testing.assert_close(signal(times) ** 2 + noise_level(times) ** 2, torch.ones(11, 1, 1, 1))


def test_schedule_has_the_signal_to_noise_ratios_of_the_paper_s_timesteps():
    times = torch.tensor([0.43, 0.66, 0.90])
    ratio = (signal(times) / noise_level(times)).flatten() ** 2
    torch.testing.assert_close(ratio, torch.tensor([1.557, 0.349, 0.0251]), atol=2e-3, rtol=0)


def test_the_bridge_starts_where_sampling_starts(states):
    x, y, eps = states
    start = torch.full((5,), 0.6)
    torch.testing.assert_close(mid_state(x, y, eps, start, start, "bridge"), start_state(y, eps, start))
    assert not torch.allclose(mid_state(x, y, eps, start, start, "plain"), start_state(y, eps, start))


@pytest.mark.parametrize("shortcut", ["bridge", "plain"])
def test_a_step_with_the_true_estimate_stays_on_the_path(states, shortcut):
    x, y, eps = states
    start, timestep, following = torch.full((5,), 0.9), torch.full((5,), 0.6), torch.full((5,), 0.2)
    state = mid_state(x, y, eps, timestep, start, shortcut)
    expected = mid_state(x, y, eps, following, start, shortcut)
    stepped = solver_step(state, x, y, timestep, following, start, shortcut)
    torch.testing.assert_close(stepped, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shortcut", ["bridge", "plain"])
def test_the_last_step_returns_the_estimate(states, shortcut):
    x, y, state = states
    times = torch.full((5,), 0.3)
    torch.testing.assert_close(solver_step(state, x, y, times, torch.zeros(5), times, shortcut), x)


def test_noise_is_standard_normal():
    index = torch.arange(400)
    noise = patch_noise(torch.tensor([7]), index // 20, index % 20, (4, 16, 16))
    assert noise.shape == (400, 4, 16, 16)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01
    quantiles = torch.quantile(noise.flatten()[:100_000], torch.tensor([0.1587, 0.5, 0.8413]))
    torch.testing.assert_close(quantiles, torch.tensor([-1.0, 0.0, 1.0]), atol=0.02, rtol=0)


def test_noise_depends_on_seed_and_place_only():
    def noise(seed, rows, cols):
        places = torch.tensor(rows), torch.tensor(cols)
        return patch_noise(torch.tensor([to_word(seed)]), *places, (4, 16, 16))

    alone = noise(1, [2], [5])
    among = noise(1, [0, 1, 2, 3], [5, 5, 5, 1])
    assert torch.equal(alone[0], among[2])
    assert torch.equal(noise(1 + 2**64, [2], [5]), alone)
    others = [noise(2, [2], [5]), noise(1, [5], [2]), among[1:2], among[3:4]]
    others += [noise(seed, [2], [5]) for seed in (1 + 2**32, -1, 1 + 2**63)]
    for other in others:
        correlation = float((alone * other).mean())
        assert abs(correlation) < 5 / alone.numel() ** 0.5


def mixed(word):
    """`lowbias32` as it is published, in whole numbers that do not overflow."""
    word %= 2**32
    word = (word ^ word >> 16) * 0x7FEB352D % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    return word ^ word >> 16


def test_noise_is_made_of_the_published_words_to_the_bit():
    words = [
        0,
        1,
        2**31 - 1,
        2**31,
        2**32 - 1,
        0x7FEB352D,
        0x846CA68B,
        2**32,
        2**63 - 1,
        -1,
        -(2**31),
        -(2**63),
    ]
    assert _mix(torch.tensor(words)).tolist() == [mixed(word) for word in words]
    for seed, row, col in (
        (0, 0, 0),
        (-1, 2**31, 7),
        (2**63 - 1, 2**32 - 1, 2**40),
        (-(2**63), 5, 2**31 - 1),
    ):
        key = seed % 2**32
        for word in (seed % 2**64 >> 32, row, col):
            key = mixed(key ^ mixed(word + 0x9E3779B9))
        bits = torch.tensor([mixed(key ^ mixed(counter + 0x85EBCA6B)) for counter in range(4096)])
        uniform = ((bits >> 8).float() + 0.5) / 2**24
        radius, angle = (-2 * uniform[:2048].log()).sqrt(), 2 * torch.pi * uniform[2048:]
        place = (torch.tensor([number]) for number in (seed, row, col))
        noise = patch_noise(*place, (16, 16, 16))
        assert torch.equal(noise.flatten(), torch.cat((radius * angle.cos(), radius * angle.sin())))
