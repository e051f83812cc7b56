"""How a token is drawn from logits: each row with its own temperature, truncation and noise.

A draw is a number in [0, 1) that is looked up in the cumulative distribution, so a row's token is a function of its
logits and its draw alone. Truncation is top-k, then top-p over what top-k left, then renormalisation, the order of
transformers' own warpers; unlike those, exactly k tokens are left where several have the k-th probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel.models.protocols import Sampling
from flywheel.seeds import uniform


@dataclass(frozen=True, slots=True)
class Draws:
    """The samplings and keys of some requests; `choose` draws for any rows of them."""

    keys: npt.NDArray[np.uint64]
    temperature: npt.NDArray[np.float32]
    """0 for greedy."""
    top_p: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]
    """The vocabulary's size, or more, where there is none."""
    alike: Sampling | None
    """The sampling of all requests, if they have one in common: the quick way."""

    def choose(self, logits: Any, requests: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        """Draw a token for each row: `logits` [rows, vocabulary], float32; `requests` and answer `positions` [rows].

        Returns tokens and their log-probabilities, [rows] each. A greedy row's is that of the untruncated softmax at
        temperature 1.
        """
        import torch

        def on_device(values: npt.NDArray[Any]) -> Any:
            return torch.from_numpy(values).to(logits.device)

        if self.alike is not None and self.alike.temperature is None:
            return _likeliest(logits)
        draws = on_device(uniform(self.keys[requests], positions))
        if self.alike is not None:
            scaled = logits if self.alike.temperature == 1.0 else logits / self.alike.temperature
            if self.alike.top_k is not None or self.alike.top_p < 1.0:
                scaled = truncate(scaled, on_device(self.top_k[requests]), on_device(self.top_p[requests]))
            return invert(scaled, draws)
        temperature = self.temperature[requests]
        drawn = temperature > 0.0
        scaled = logits / on_device(np.where(drawn, temperature, np.float32(1.0))).unsqueeze(1)
        cut = np.flatnonzero(drawn & ((self.top_p[requests] < 1.0) | (self.top_k[requests] < logits.shape[1])))
        if len(cut):
            there, which = on_device(cut), requests[cut]
            scaled[there] = truncate(scaled[there], on_device(self.top_k[which]), on_device(self.top_p[which]))
        tokens, log_probabilities = invert(scaled, draws)
        if not drawn.all():
            greedy = on_device(~drawn)
            best, best_log = _likeliest(logits)
            tokens = torch.where(greedy, best, tokens)
            log_probabilities = torch.where(greedy, best_log, log_probabilities)
        return tokens, log_probabilities


def draws_for(samplings: Sequence[Sampling], keys: Sequence[int]) -> Draws:
    """The samplings and 64-bit keys of some requests, as arrays."""
    first = samplings[0]
    everything = np.iinfo(np.int64).max
    return Draws(
        keys=np.array(keys, dtype=np.uint64),
        temperature=np.array([one.temperature or 0.0 for one in samplings], dtype=np.float32),
        top_p=np.array([one.top_p for one in samplings], dtype=np.float32),
        top_k=np.array([one.top_k or everything for one in samplings], dtype=np.int64),
        alike=first if all(one == first for one in samplings) else None,
    )


def invert(scaled: Any, draws: Any) -> tuple[Any, Any]:
    """The token at which each row's cumulative softmax of `scaled` [rows, vocabulary] passes its draw, in [0, 1)."""
    import torch

    probabilities = torch.softmax(scaled, dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    # Scaled by the last entry, since rounding leaves the sum a little off 1. A draw that rounds up to 1 would pass the
    # end and pick the last token, however unlikely it is.
    below_one = 1.0 - torch.finfo(cumulative.dtype).eps / 2
    threshold = draws.to(cumulative.dtype).clamp_(max=below_one) * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, threshold.unsqueeze(1), right=True).clamp_(max=scaled.shape[1] - 1)
    return tokens.squeeze(1), probabilities.gather(1, tokens).squeeze(1).log_()


def truncate(scaled: Any, top_k: Any, top_p: Any) -> Any:
    """`scaled` [rows, vocabulary] with minus infinity for all tokens but the `top_k` [rows] likeliest and, of these,
    the fewest likeliest that together have `top_p` [rows] of the probability. Of equals the lower id stays."""
    import torch

    ordered, places = torch.sort(scaled, dim=-1, descending=True, stable=True)
    ranks = torch.arange(scaled.shape[1], device=scaled.device)
    ordered = ordered.masked_fill(ranks >= top_k.unsqueeze(1), -torch.inf)
    probabilities = torch.softmax(ordered, dim=-1)
    # A token stays if those before it have less than top_p; the likeliest always does.
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = ((before >= top_p.unsqueeze(1)) & (top_p.unsqueeze(1) < 1.0)) | (ordered == -torch.inf)
    dropped[:, 0] = False
    return scaled.masked_fill(torch.zeros_like(dropped).scatter_(1, places, dropped), -torch.inf)


def _likeliest(logits: Any) -> tuple[Any, Any]:
    best, tokens = logits.max(dim=-1)
    return tokens, best - logits.logsumexp(dim=-1)
