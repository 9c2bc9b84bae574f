"""Sample sites that the sums of `ppvae.program.joint` cannot take: a sentence with the remedy for the first one, None without any."""

import pyro.distributions as dist
import torch

from ppvae.data import Batch
from ppvae.program.joint import Site, is_row_site, unwrapped


def unfit(sites: dict[str, Site], batch: Batch) -> str | None:
    """What is wrong with one of a story's sites."""
    for name, site in sites.items():
        if site["infer"].get("_deterministic") and f"{name}_unobserved" in sites:  # what pyro.sample makes of obs_mask
            return f"obs_mask makes latents of what {name} misses: leave it out, and write .mask(batch.observed) after the distribution"
        if isinstance(unwrapped(site["fn"]), dist.Delta) and not site["is_observed"]:
            return f"the latent {name!r} is a Delta, which no guide can follow: write pyro.deterministic({name!r}, ...) in its place"
    return crowded(sites, batch)


def weighed(sites: dict[str, Site], batch: Batch) -> str | None:
    """Where a log probability counts otherwise than once: a scale that is not that of the rows, or a mask on a latent."""
    for name, site in sites.items():
        if site["infer"].get("_deterministic"):
            continue
        scale = torch.as_tensor(site["scale"]) / (batch.scale if is_row_site(site) else 1.0)
        if bool(((scale - 1).abs() > 1e-6).any()):
            if site["is_observed"]:
                return f"poutine.scale makes {name!r} count otherwise than once, so the score is no density: take the scale away"
            return f"poutine.scale weighs the density of {name!r}, so there is no likelihood: leave it out, and use SVI(beta=...)"
        if not site["is_observed"] and (site["mask"] is not None or partly_masked(site["fn"])):
            remedy = "mask what is observed alone, since a latent that nothing observed depends on adds nothing"
            return f"a mask takes the density of {name!r} away from some rows, which then have no likelihood: {remedy}"
    return None


def partly_masked(fn: dist.TorchDistribution) -> bool:
    """Whether a mask that is not all or nothing lies on the distribution, or within it."""
    while fn is not None:
        if isinstance(getattr(fn, "_mask", None), torch.Tensor):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def crowded(sites: dict[str, Site], batch: Batch) -> str | None:
    """Where a row has more than one log probability of a site: the dims left of the rows are those of draws and of enumerated sites."""
    for name, site in sites.items():
        if not is_row_site(site):
            continue
        other = next((frame.name for frame in site["cond_indep_stack"] if frame.name != "rows"), None)
        if other is not None:
            remedy = "take that plate away and add .to_event(1) to the distribution, or write a plain loop"
            return f"{name!r} lies in the plate {other!r} beside the rows: {remedy}"
        if site["fn"].batch_shape != (batch.size,):
            return f"a row has more than one log probability of {name!r}: add .to_event(1) to its distribution"
    return None


def misplaced(guide: dict[str, Site], story: dict[str, Site], batch: Batch) -> str | None:
    """What is wrong with where one of a guide's sites lies, held against the story's latents."""
    for name, site in guide.items():
        inside = is_row_site(story[name])
        if any(frame.name == "rows" and frame.full_size == batch.n_total for frame in site["cond_indep_stack"]) != inside:
            remedy = "put it under `with batch.rows:`" if inside else "take it out of `with batch.rows:`"
            return f"the guide samples {name!r} {'outside' if inside else 'inside'} the plate over rows, unlike the story: {remedy}"
    return crowded(guide, batch) or weighed(guide, batch)
