"""`supervised.train` (transformers.Trainer) against a bare PyTorch loop: same model, data, order, optimiser, batches.

Repetitions alternate, which comes first too. Start-up is left out: a step's time is the median over steps, taken at
step ends. Both losses are compared at the end, so that the two really do the same. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from flywheel import params
from flywheel.learning import supervised
from flywheel.learning.examples import IGNORED, EpochOrder, Examples, collate
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.problems import domain as domains


def by_trainer(
    model: LanguageModel, examples: Examples, section: params.Train, work: Path, seed: int
) -> tuple[list[float], float]:
    """Seconds of each step, and the loss on the examples at the end."""
    ends = []
    training = supervised.train(
        model.model, examples, examples, section, seed=seed, fill=model.fill_id, work=work, until_stale=False,
        checkpoint_seconds=3600.0, progress=lambda _done, _total: ends.append(time.perf_counter()),
    )  # fmt: skip
    return [after - before for before, after in itertools.pairwise(ends)], training.valid_loss


def by_hand(model: LanguageModel, examples: Examples, section: params.Train, seed: int) -> tuple[list[float], float]:
    """The same steps without Trainer: constant learning rate, fused AdamW, clipped gradients."""
    import torch

    network = model.model.train()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
    )
    order, ends = EpochOrder(len(examples), seed), []
    for epoch in range(section.epochs):
        indices = order.order(epoch).tolist()
        for start in range(0, len(indices), section.batch_size):
            chosen = indices[start : start + section.batch_size]
            batch = collate([examples[index] for index in chosen], model.fill_id)
            loss = _loss(network, {name: tensor.to(network.device) for name, tensor in batch.items()})
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), section.gradient_clip)
            optimiser.step()
            optimiser.zero_grad()
            ends.append(time.perf_counter())
    network.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(examples), 256):
            rows = [examples[index] for index in range(start, min(start + 256, len(examples)))]
            batch = collate(rows, model.fill_id)
            total += float(_loss(network, {k: v.to(network.device) for k, v in batch.items()})) * len(rows)
    return [after - before for before, after in itertools.pairwise(ends)], total / len(examples)


def _loss(network: object, batch: dict[str, object]) -> object:
    import torch

    logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    weights = batch["weights"].unsqueeze(1) * (labels != IGNORED)
    return (losses * weights).sum() / weights.sum()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1280, help="examples an epoch (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="passes a repetition (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="paired repetitions (default: %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=params.Model().hidden_size, help="(default: %(default)s)")
    parser.add_argument("--layers", type=int, default=params.Model().layers, help="(default: %(default)s)")
    # One by default: threads that wait for one another on a busy machine measure the machine, sevenfold.
    parser.add_argument("--threads", type=int, default=1, help="threads of the CPU model (default: %(default)s)")
    given = parser.parse_args()
    if min(given.labels, given.epochs, given.hidden_size, given.layers, given.threads) < 1 or given.repeats < 2:
        parser.error(
            "--labels, --epochs, --hidden-size, --layers and --threads must be at least 1, --repeats at least 2"
        )
    import torch

    torch.set_num_threads(given.threads)
    domain = domains.load(params.Problems())
    # No weight decay: Trainer spares norms and biases, which the bare loop would have to be told.
    section = params.Train(epochs=given.epochs, schedule="constant", warmup_share=0.0, weight_decay=0.0)
    sizes = params.Model(
        hidden_size=given.hidden_size, layers=given.layers, intermediate_size=given.hidden_size * 11 // 4
    )
    pairs, losses = [], []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        language.create(sizes, domain.vocabulary(), (), 0, base)
        device = language.device_for("auto")

        def fresh() -> LanguageModel:
            return language.load(base, device, dtype="float32")

        model = fresh()
        examples = Examples(
            (model.encode_prompt(domain.prompt(p)), model.encode_answer(str(p.reference)), 1.0)
            for p in domain.problems("train", given.labels)
        )
        for repeat in range(-1, given.repeats):
            seconds = {}
            for name in ("trainer", "bare") if repeat % 2 else ("bare", "trainer"):
                if name == "trainer":
                    work = Path(scratch) / f"work-{repeat}"
                    seconds[name], loss = by_trainer(fresh(), examples, section, work, repeat + 1)
                else:
                    seconds[name], loss = by_hand(fresh(), examples, section, repeat + 1)
                losses.append(loss)
            if repeat >= 0:
                pairs.append(tuple(statistics.median(seconds[name]) for name in ("trainer", "bare")))
    ratios = [trainer / bare for trainer, bare in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    trainer, bare = (statistics.median(pair[side] for pair in pairs) * 1000 for side in (0, 1))
    apart = max(abs(one - other) for one, other in zip(losses[::2], losses[1::2], strict=True))
    print(
        f"a step takes {trainer:.1f} ms by Trainer, {bare:.1f} ms by a bare loop: {middle:.3f} times "
        f"(quartiles {low:.3f} to {high:.3f}); final losses at most {apart:.4f} nats apart"
    )
    document = {
        "benchmark": "trainer", "parameters": model.parameters, "labels": len(examples), "epochs": given.epochs,
        "repeats": given.repeats, "batch_size": section.batch_size, "device": device,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "ratio": round(middle, 4),
        "ratio_quartiles": [round(low, 4), round(high, 4)], "trainer_ms": round(trainer, 2), "bare_ms": round(bare, 2),
        "losses_apart": apart,
    }  # fmt: skip
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
