"""Sec. 3.1, 4 (Eq. 4), 4.6: noise, what the network predicts, and the loss of a pyramid."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hpdm_core.diffusion.patch_diffusion import PatchDiffusion
from hpdm_core.diffusion.preconditioning import Preconditioning, add_noise
from hpdm_core.records import NO_CLASS, PatchBatch
from tests.paper.tiny import make_batch, make_network, make_preconditioning, make_pyramid

PARAMETRISATIONS = ("v", "x", "snapvideo")
SIGMA_IN = (0.5, 1.0, 4.0, 16.0)
SIGMAS = torch.tensor([0.002, 0.05, 0.3, 1.0, 4.0, 80.0], dtype=torch.float64)
PLAIN = PatchDiffusion(
    pyramid=make_pyramid(3),
    preconditioning=make_preconditioning(3),
    noise_mean=(-1.2, -1.2, -1.2),
    noise_std=(1.2, 1.2, 1.2),
    level_weights=(1.0, 1.0, 1.0),
    condition_dropout=0.0,
    clean_context=0.0,
    context_sigma=0.002,
    self_conditioning=0.0,
)


def flat(x: Tensor) -> Tensor:
    return x.flatten()


def make(
    parametrisation: str, *, sigma_data: float = 0.5, sigma_in: float = 4.0, cap: float = 1e12
) -> Preconditioning:
    return Preconditioning(
        parametrisation=parametrisation,
        sigma_data=sigma_data,
        sigma_in=sigma_in,
        x_weight_cap=cap,
    )


# Preconditioning.


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.0])
def test_v_is_edm(sigma_data):
    """Karras et al. 2022, Table 1, written out."""
    scales, sd = make("v", sigma_data=sigma_data)(SIGMAS), sigma_data
    root = (SIGMAS**2 + sd**2).sqrt()
    assert torch.allclose(flat(scales.c_skip), sd**2 / root**2)
    assert torch.allclose(flat(scales.c_out), SIGMAS * sd / root)
    assert torch.allclose(flat(scales.c_in), 1 / root)
    assert torch.allclose(flat(scales.weight), (SIGMAS**2 + sd**2) / (SIGMAS * sd) ** 2)
    assert torch.allclose(scales.c_noise, SIGMAS.log() / 4)


def test_v_is_v_prediction_of_the_variance_preserving_process():
    """Salimans and Ho 2022: z = a x' + s eps, v = a eps - s x', with x' = x / sigma_data.

    With s / a = sigma / sigma_data the network's target is -v: EDM's sign.
    """
    sd = 0.5
    scales = make("v", sigma_data=sd)(SIGMAS)
    x, eps = (torch.randn(len(SIGMAS), 3, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    noisy = add_noise(x, eps, SIGMAS)
    target = (x - scales.c_skip * noisy) / scales.c_out
    angle = torch.atan(SIGMAS / sd).reshape(-1, 1, 1, 1, 1)
    v = angle.cos() * eps - angle.sin() * x / sd
    assert torch.allclose(target, -v, atol=1e-9)
    assert torch.allclose(scales.c_in * noisy, angle.cos() * x / sd + angle.sin() * eps)


def test_x_predicts_the_video_alone_and_its_weight_is_capped():
    scales, edm = make("x", cap=400.0)(SIGMAS), make("v")(SIGMAS)
    assert not scales.c_skip.any()
    assert torch.equal(scales.c_out, torch.full_like(scales.c_out, 0.5))
    assert torch.equal(scales.c_in, edm.c_in)
    assert torch.equal(scales.weight, edm.weight.clamp(max=400.0))
    assert flat(scales.weight)[:2].tolist() == [400.0, 400.0]


@pytest.mark.parametrize("sigma_in", SIGMA_IN)
def test_snapvideos_form_is_that_of_the_scaled_video(sigma_in):
    """Menapace et al. 2024: v = eps - s y of y = x / sigma_in at noise s = sigma / sigma_in."""
    scales, s = make("snapvideo", sigma_in=sigma_in)(SIGMAS), SIGMAS / sigma_in
    column = s.reshape(-1, 1, 1, 1, 1)
    x, eps = (torch.randn(len(SIGMAS), 3, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    noisy = add_noise(x, eps, SIGMAS)
    target = (eps - column * x) * (1 + column**2).rsqrt()
    assert torch.allclose(scales.denoised(noisy, target), x, atol=1e-10)
    unit = flat(scales.c_in) ** 2 * (1 + SIGMAS**2)  # videos of unit variance
    assert torch.allclose(unit, torch.ones_like(unit))
    assert torch.allclose(flat(scales.weight), 1 + 1 / s**2)
    assert torch.allclose(scales.c_noise, s.log() / 4)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("sigma_in", SIGMA_IN)
def test_the_target_of_f_undoes_itself(parametrisation, sigma_in):
    x, eps = (torch.randn(len(SIGMAS), 3, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    scales, noisy = make(parametrisation, sigma_in=sigma_in)(SIGMAS), add_noise(x, eps, SIGMAS)
    target = (x - scales.c_skip * noisy) / scales.c_out
    assert torch.allclose(scales.denoised(noisy, target), x, atol=1e-10)


def test_inputs_and_targets_of_v_have_unit_variance_for_gaussian_videos():
    """By the variance of a sum of independent parts; so the loss starts near 1 on every level."""
    sd, scales = 0.5, make("v")(SIGMAS)
    assert torch.allclose(flat(scales.c_in) ** 2 * (sd**2 + SIGMAS**2), 0 * SIGMAS + 1)
    of_video = (1 - flat(scales.c_skip)) / flat(scales.c_out)
    of_noise = flat(scales.c_skip) * SIGMAS / flat(scales.c_out)
    assert torch.allclose((sd * of_video) ** 2 + of_noise**2, 0 * SIGMAS + 1)
    # The weight on the error of D is 1 on that of F.
    assert torch.allclose(flat(scales.weight * scales.c_out**2), 0 * SIGMAS + 1)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize("sigma_in", SIGMA_IN)
@pytest.mark.parametrize("spread", [0.2, 0.5, 1.0])
def test_the_optimal_network_for_gaussian_videos_gives_the_posterior_mean(
    parametrisation, sigma_in, spread
):
    """x ~ N(0, s^2): F* = Cov(target, y) / Var(y) y is the best F, and D of it is E[x | y]."""
    scales = make(parametrisation, sigma_in=sigma_in)(SIGMAS)
    y = torch.tensor(0.7, dtype=torch.float64)
    variance = spread**2 + SIGMAS**2
    c_skip, c_out = flat(scales.c_skip), flat(scales.c_out)
    covariance = (spread**2 - c_skip * variance) / c_out
    optimal_f = (covariance / variance * y).reshape(-1, 1, 1, 1, 1)
    denoised = flat(scales.denoised(y, optimal_f))
    assert torch.allclose(denoised, spread**2 / variance * y, atol=1e-12)


@pytest.mark.parametrize("sigma_in", SIGMA_IN)
def test_how_much_noise_an_f_of_zero_leaves_in_the_denoised_video(sigma_in):
    """What F has to cancel pixel by pixel: at most sigma_data / 2 for v, nothing for x.

    SnapVideo's form leaves sqrt(sigma_in) / 2, more than the videos' own deviation of 0.5 from
    sigma_in 1 on.
    """
    sigma = torch.logspace(-4, 4, 20_001, dtype=torch.float64)
    left = {
        name: (flat(make(name, sigma_in=sigma_in)(sigma).c_skip) * sigma).max().item()
        for name in PARAMETRISATIONS
    }
    assert left["v"] == pytest.approx(0.5 / 2, rel=1e-4)
    assert left["x"] == 0.0
    assert left["snapvideo"] == pytest.approx(sigma_in**0.5 / 2, rel=1e-4)


# The loss: Eq. 4 with the weights above.


class Recorder:
    """A network that notes what it is given and answers with a fixed multiple of it."""

    def __init__(self, factor: float = 0.3) -> None:
        self.factor, self.calls = factor, []

    def __call__(self, inputs, c_noise, boxes, condition, latents, *, latents_only=False):
        self.calls.append((inputs, c_noise, boxes, condition, latents))
        states = tuple(torch.full((len(x), 2, 2), 1.0) for x in inputs)
        return tuple(self.factor * x for x in inputs), states


def take(batch: PatchBatch, rows: slice, levels: int | None = None) -> PatchBatch:
    return PatchBatch(
        patches=tuple(p[rows] for p in batch.patches)[:levels],
        offsets=batch.offsets[rows],
        condition=batch.condition.select(rows),
        indices=batch.indices[rows],
        keys=batch.keys[rows],
    )


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_the_loss_is_equation_4_with_the_weights_of_its_parametrisation(parametrisation):
    """Slow and plain: undo the preconditioning and compare clean videos, level by level."""
    batch = make_batch(PLAIN.pyramid, 3)
    diffusion = replace(
        PLAIN,
        level_weights=(1.0, 2.0, 0.5),
        preconditioning=make_preconditioning(3, parametrisation),
    )
    draws, network = diffusion.draw(batch, seed=1, step=2), Recorder()
    losses = diffusion.loss(network, batch, seed=1, step=2)
    expected = []
    for level, weight in enumerate(diffusion.level_weights):
        errors = []
        for row in range(3):
            x, eps = batch.patches[level][row].double(), draws.noise[level][row].double()
            sigma = draws.sigma[row, level].double()
            scales = diffusion.preconditioning[level](sigma[None])
            noisy = x + sigma * eps
            given = scales.c_in.squeeze() * noisy
            denoised = scales.c_skip.squeeze() * noisy + scales.c_out.squeeze() * 0.3 * given
            on_f = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
            s = sigma / diffusion.preconditioning[level].sigma_in
            known = {"v": on_f, "x": on_f.clamp(max=400), "snapvideo": 1 + 1 / s**2}
            errors.append(known[parametrisation] * (denoised - x).square().mean())
        expected.append(weight * torch.stack(errors).mean())
        assert losses.per_level[level].item() == pytest.approx(
            expected[-1].item() / weight, rel=1e-3
        )
    assert losses.total.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-3)


def test_levels_are_corrupted_independently():
    draws = PLAIN.draw(make_batch(PLAIN.pyramid, 400), seed=0, step=0)
    corr = torch.corrcoef(draws.sigma.log().T)
    assert (corr - torch.eye(3)).abs().max() < 0.2
    noise = torch.corrcoef(torch.stack([n.flatten() for n in draws.noise]))
    assert (noise - torch.eye(3)).abs().max() < 0.02


@pytest.mark.parametrize("options", [{}, {"self_conditioning": True}, {"conditioning": "text"}])
def test_the_loss_does_not_depend_on_the_split_of_the_batch(options):
    """Over passes, or over processes: a sample's draws come from its place in the batch."""
    network = make_network(3, **options)
    diffusion = replace(
        PLAIN,
        condition_dropout=0.5,
        clean_context=0.4,
        self_conditioning=0.5 if "self_conditioning" in options else 0.0,
    )
    batch = make_batch(PLAIN.pyramid, 4, kind=options.get("conditioning", "class"))
    whole = diffusion.loss(network, batch, seed=3, step=5).total
    for size in (1, 2):
        parts = [
            diffusion.loss(network, take(batch, slice(start, start + size)), seed=3, step=5).total
            for start in range(0, 4, size)
        ]
        assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 6, 6), (2, 4, 4)])
@pytest.mark.parametrize("clean_context", [0.0, 0.5])
def test_leaving_out_fine_levels_changes_no_coarse_noise(patch, clean_context):
    """Whatever the number of pixels: generators draw in blocks."""
    t, h, w = patch
    pyramid = replace(PLAIN.pyramid, patch=patch, levels=(patch, (t, 2 * h, w), (t, 4 * h, w)))
    diffusion = replace(PLAIN, pyramid=pyramid, clean_context=clean_context)
    batch = make_batch(pyramid, 5)
    whole = diffusion.draw(batch, seed=0, step=1)
    for levels in (1, 2):
        some = diffusion.draw(take(batch, slice(None), levels), seed=0, step=1)
        for level in range(levels):
            assert torch.equal(some.noise[level], whole.noise[level])
        if clean_context == 0:
            assert torch.equal(some.sigma, whole.sigma[:, :levels])
        assert torch.equal(some.drop, whole.drop)


def test_draws_are_functions_of_seed_step_and_place():
    batch = make_batch(PLAIN.pyramid, 3)
    first = PLAIN.draw(batch, seed=0, step=1)
    assert torch.equal(first.sigma, PLAIN.draw(batch, seed=0, step=1).sigma)
    for seed, step in ((1, 1), (0, 2)):
        assert not torch.equal(first.sigma, PLAIN.draw(batch, seed=seed, step=step).sigma)
    assert not torch.equal(first.sigma[0], first.sigma[1])


# Every option changes something.


def test_condition_dropout_drops_its_share_of_conditions():
    batch = make_batch(PLAIN.pyramid, 600)
    batch = replace(batch, condition=replace(batch.condition, labels=torch.zeros(600).long()))
    for share in (0.0, 0.3, 1.0):
        network = Recorder()
        replace(PLAIN, condition_dropout=share).loss(network, batch, seed=0, step=0)
        labels = network.calls[0][3].labels
        assert (labels == NO_CLASS).float().mean().item() == pytest.approx(share, abs=0.06)


def test_dropped_texts_are_masked_as_a_whole():
    batch, network = make_batch(PLAIN.pyramid, 5, kind="text"), Recorder()
    replace(PLAIN, condition_dropout=1.0).loss(network, batch, seed=0, step=0)
    assert not network.calls[0][3].text_mask.any()


def test_latent_self_conditioning_gives_its_share_of_samples_an_earlier_pass():
    batch = make_batch(PLAIN.pyramid, 400)
    for share, passes in ((0.0, 1), (0.25, 2), (1.0, 2)):
        network = Recorder()
        replace(PLAIN, self_conditioning=share).loss(network, batch, seed=0, step=0)
        assert len(network.calls) == passes
        assert network.calls[0][4] is None
        if share:
            seen = torch.stack(network.calls[1][4]).mean().item()  # 1 where given, 0 where not
            assert seen == pytest.approx(share, abs=0.07)


def test_clean_context_gives_its_share_of_samples_finished_lower_levels():
    """As at sampling; the errors of the finished levels do not count."""
    batch = make_batch(PLAIN.pyramid, 600)
    for share in (0.0, 0.4):
        draws = replace(PLAIN, clean_context=share).draw(batch, seed=0, step=0)
        clean = draws.sigma == torch.tensor(0.002)
        assert torch.equal(draws.counts == 0, clean)
        assert clean[:, 0].float().mean().item() == pytest.approx(share, abs=0.06)
        assert clean[:, 1].float().mean().item() == pytest.approx(share / 2, abs=0.06)
        assert not clean[:, 2].any()  # the finest level always learns
        assert (clean[:, 0] >= clean[:, 1]).all()


def test_clean_context_leaves_a_single_level_alone():
    """A base model, or a step that leaves out all finer levels, has no context to clean."""
    batch = take(make_batch(PLAIN.pyramid, 50), slice(None), 1)
    draws = replace(PLAIN, clean_context=1.0).draw(batch, seed=0, step=0)
    assert (draws.counts == 1).all()


def test_level_weights_scale_their_levels():
    batch, network = make_batch(PLAIN.pyramid, 2), Recorder()
    per_level = PLAIN.loss(network, batch, seed=0, step=0).per_level
    for level in range(3):
        weights = tuple(3.0 if k == level else 0.0 for k in range(3))
        losses = replace(PLAIN, level_weights=weights).loss(network, batch, seed=0, step=0)
        assert losses.total.item() == pytest.approx(per_level[level].item(), rel=1e-5)
        assert torch.equal(losses.per_level, per_level)
