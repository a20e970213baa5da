"""Step time, memory and network of a training on many devices, computed and not measured.

Operations are counted from the layers' shapes, bytes from what FSDP2, HSDP and DDP send; the rates
of the card and the links are stated assumptions. Left out: latencies, stragglers, reading videos.
"""

from dataclasses import dataclass

from hpdm_core.recipe.schema import Recipe
from hpdm_core.runs.train.fit import FLOAT, Fit


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines of equal cards, by the makers' figures.

    Args:
        card: name.
        memory: bytes of a card.
        peak: operations per second of dense matrix products, by precision.
        utilisation: fraction of the peak that training sustains, an assumption.
        per_machine: cards of a machine.
        machine_link: bytes per second that a card sends to others of its machine.
        network: bytes per second that a card sends to other machines.
    """

    card: str
    memory: int
    peak: dict[str, float]
    utilisation: float
    per_machine: int
    machine_link: float
    network: float


# NVIDIA's data sheet of the H100 SXM (dense): NVLink 900 GB/s in both directions together; a
# network card of 400 Gb/s for each GPU, as in a DGX H100.
H100 = Cluster(
    card="H100 SXM 80 GB",
    memory=80 * 10**9,
    peak={"fp32": 67e12, "tf32": 495e12, "bf16": 989e12},
    utilisation=0.4,
    per_machine=8,
    machine_link=450e9,
    network=50e9,
)


def simulate(
    recipe: Recipe, figures: dict, fit: Fit, *, devices: int, cluster: Cluster = H100
) -> dict:
    """Return the cost of a training step.

    Args:
        recipe: resolved.
        figures: what `describe` counts.
        fit: of the recipe on that many of the cluster's cards.
        devices: number of cards.
        cluster: rates.

    Returns:
        seconds of computation and of communication, of a step without and with complete overlap of
        the two, bytes that a card sends in a step, videos per second, and `efficiency`: the
        fraction of time in which the card computes, without overlap.
    """
    rows = -(-recipe.train.batch_size // devices)
    passes = -(-rows // fit.micro_batch)
    # Recomputing blocks costs another forward pass.
    again = figures["flops_per_video"] if recipe.train.activation_checkpointing else 0
    flops = rows * (figures["flops_per_video_training"] + again)
    compute = flops / (cluster.utilisation * cluster.peak[recipe.train.precision])
    sent = sent_bytes(recipe, figures["parameters"]["total"], devices=devices, passes=passes)
    shards = devices // sent.pop("replicas")
    rates = {
        "shards": cluster.machine_link if shards <= cluster.per_machine else cluster.network,
        "copies": cluster.machine_link if devices <= cluster.per_machine else cluster.network,
    }
    communication = sum(size / rates[group] for group, size in sent.items())
    step, best = compute + communication, max(compute, communication)
    return {
        "cluster": f"{cluster.card}, {100 * cluster.utilisation:.0f}% of its "
        f"{cluster.peak[recipe.train.precision] / 1e12:.0f} TFLOP/s, "
        f"{cluster.machine_link / 1e9:.0f} GB/s in a machine of {cluster.per_machine}, "
        f"{cluster.network / 1e9:.0f} GB/s between machines",
        "devices": devices,
        "shards": shards if recipe.train.parallel == "fsdp" else 1,
        "micro_batch": fit.micro_batch,
        "passes": passes,
        "memory_bytes": fit.needed["total"],
        "fits": fit.needed["total"] <= cluster.memory,
        "compute_seconds": compute,
        "communication_seconds": communication,
        "sent_bytes": sum(sent.values()),
        "step_seconds": step,
        "step_seconds_overlapped": best,
        "videos_per_second": recipe.train.batch_size / step,
        "efficiency": compute / step,
        "days": recipe.train.steps * step / 86400,
    }


def sent_bytes(recipe: Recipe, parameters: int, *, devices: int, passes: int) -> dict[str, int]:
    """Return the bytes that a device sends in a step: within its shards, and to other copies.

    A ring of n devices sends (n - 1) / n of a tensor to gather or to scatter it, and twice that to
    reduce it for all. FSDP2 gathers the weights in each forward and backward pass and scatters the
    gradients in a step's last one.
    """
    size = FLOAT * parameters
    if recipe.train.parallel == "ddp" or devices == 1:
        return {"replicas": 1, "shards": 0, "copies": 2 * size * (devices - 1) // devices}
    replicas = min(recipe.train.replicas, devices)
    shards = devices // replicas
    gathers = passes * (3 if recipe.model.self_conditioning > 0 else 2)
    return {
        "replicas": replicas,
        "shards": (gathers + 1) * size * (shards - 1) // shards,
        "copies": 2 * (size // shards) * (replicas - 1) // replicas,
    }
