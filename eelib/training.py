"""Self-supervised training: heads learn to say what the whole model says (self-distillation, arXiv 2407.21082)."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.backbone import Backbone
from eelib.corpus import pad
from eelib.errors import CorpusError, HeadsError, InvalidInputError, TrainingError
from eelib.heads import ExitHeads
from eelib.workspace import written_whole

LOSSES = ("kl", "cross_entropy")


@dataclass(frozen=True)
class TrainConfig:
    """How heads are trained.

    epochs: passes over the sequences.
    batch_size: sequences a step.
    learning_rate: peak of AdamW's, reached by a linear warm-up and brought down to zero by a cosine.
    warmup: share of the steps that warm up.
    max_grad_norm: gradients of one head are clipped to this norm.
    loss: `kl`, KL(teacher || head) in nats; `cross_entropy`, to the teacher's most likely token. Mean over tokens.
    log_every: steps between the rows of the report.
    checkpoint_every: steps between checkpoints.
    seed: of the order of the sequences.
    """

    epochs: int = 2
    batch_size: int = 4
    learning_rate: float = 3e-3
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    loss: str = "kl"
    log_every: int = 10
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise InvalidInputError(f"Unknown loss {self.loss!r}: expected one of {', '.join(LOSSES)}.")
        if not 0 <= self.warmup < 1:
            raise InvalidInputError(f"warmup={self.warmup}: expected a share of the steps, from 0 to below 1.")
        for name in ("epochs", "batch_size", "learning_rate", "max_grad_norm", "log_every", "checkpoint_every"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name}={getattr(self, name)}: expected a positive number.")


def distil(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Sequence[Tensor],
    config: TrainConfig,
    *,
    first_position: int = 0,
    validation: Sequence[Tensor] = (),
    checkpoint: str | Path | None = None,
) -> pd.DataFrame:
    """Trains the heads in place against the frozen model's own distribution, and leaves them in the model's type.

    Args:
        sequences: 1-D LongTensors, one a document.
        first_position: of every sequence the first to train on and to count (`Corpus.first_position`).
        validation: held-out sequences; agreement and loss on them go into `heads.training_record`.
        checkpoint: file to go on from when a former call with the same arguments was killed; deleted at the end. The
            result is that of an uninterrupted run, bit for bit on a CPU.

    Returns:
        One row per logged step and head: step, tokens, depth, loss [nats], agreement (share of tokens where the
        head's choice is the model's), learning_rate, tokens_per_second.

    Raises:
        CorpusError: no sequences. HeadsError: nothing to train. TrainingError: the loss is not a number, or the
        checkpoint is another run's.
    """
    if not sequences:
        raise CorpusError("No sequences to train on: the training split is empty.")
    if not any(True for _ in heads.parameters()):
        raise HeadsError(f"Heads of kind {heads.config.kind!r} have nothing to train.")
    heads.float().requires_grad_(True)
    run = _Run(heads, config, sequences, first_position, None if checkpoint is None else Path(checkpoint))
    run.restore()
    steps = run.schedule()
    with tqdm(total=len(steps), initial=run.step, desc="training heads", unit="step") as bar:
        started, tokens_before = time.perf_counter(), run.tokens
        for batch in steps[run.step :]:
            rows = _train_step(model, heads, [sequences[i] for i in batch], run, len(steps))
            seconds = time.perf_counter() - started
            bar.update()
            if run.step % config.log_every == 0 or run.step == len(steps):
                speed = (run.tokens - tokens_before) / seconds
                run.log += [{**row, "tokens_per_second": speed} for row in rows]
                bar.set_postfix_str(f"loss {rows[-1]['loss']:.2f} at depth {rows[-1]['depth']}, {speed:.0f} tokens/s")
            if run.step % config.checkpoint_every == 0 and run.step < len(steps):
                run.save()
    heads.to(model.dtype).requires_grad_(False)
    heads.training_record = {
        "config": asdict(config),
        "sequences": len(sequences),
        "tokens": run.tokens,
        "validation": evaluate(model, heads, validation, first_position).to_dict("records") if validation else [],
    }
    run.finish()
    return pd.DataFrame(run.log)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Sequence[Tensor],
    first_position: int = 0,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Loss (KL, nats) and agreement per depth, mean over the positions that count. One row a head."""
    sums, tokens = {depth: [0.0, 0] for depth in heads.depths}, 0
    for start in range(0, len(sequences), batch_size):
        lesson = _teach(model, heads, sequences[start : start + batch_size], first_position)
        tokens += len(lesson.choice)
        for depth in heads.depths:
            logits = heads.logits(depth, lesson.states[depth]).float()
            sums[depth][0] += (F.cross_entropy(logits, lesson.target, reduction="none") - lesson.entropy).sum().item()
            sums[depth][1] += (heads.tokens(logits) == lesson.choice).sum().item()
    return pd.DataFrame(
        [{"depth": d, "loss": loss / tokens, "agreement": agreed / tokens} for d, (loss, agreed) in sums.items()]
    )


class _Run:
    """Where training stands: optimizer, step, tokens seen and log, kept in one file that is never half-written."""

    def __init__(self, heads, config: TrainConfig, sequences: Sequence[Tensor], first_position: int, path: Path | None):
        self.heads, self.config, self.path, self.n_sequences = heads, config, path, len(sequences)
        self.first_position = first_position
        self.step, self.tokens, self.log = 0, 0, []
        self.optimizer = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=0.0)
        digest = hashlib.sha256(repr((config, first_position, heads.config, heads.backbone.fingerprint())).encode())
        for sequence in sequences:
            digest.update(sequence.numpy().tobytes())
        self.identity = digest.hexdigest()

    def schedule(self) -> list[list[int]]:
        """Which sequences each step takes: every epoch all of them, in an order of its own."""
        generator = torch.Generator().manual_seed(self.config.seed)
        steps = []
        for _ in range(self.config.epochs):
            order = torch.randperm(self.n_sequences, generator=generator)
            steps += [batch.tolist() for batch in order.split(self.config.batch_size)]
        return steps

    def restore(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        with safe_open(self.path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if state["identity"] != self.identity:
            raise TrainingError(
                f"{self.path} is the checkpoint of another run (other text, heads, model or settings). "
                "Delete it to start anew, or go back to the settings that it was made with."
            )
        self.step, self.tokens, self.log = state["step"], state["tokens"], state["log"]
        for name, parameter in self.heads.named_parameters():
            parameter.data.copy_(tensors[f"{name}.value"])
            moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": tensors[f"{name}.step"], **moments}

    def save(self) -> None:
        if self.path is None:
            return
        tensors = {}
        for name, parameter in self.heads.named_parameters():
            tensors[f"{name}.value"] = parameter.data
            tensors.update({f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()})
        state = {"identity": self.identity, "step": self.step, "tokens": self.tokens, "log": self.log}
        with written_whole(self.path) as path:
            save_file(tensors, path, metadata={"state": json.dumps(state)})

    def finish(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _train_step(model, heads: ExitHeads, batch: list[Tensor], run: _Run, n_steps: int) -> list[dict]:
    """One step of all heads, one after the other (their losses share nothing, so memory holds one at a time)."""
    lesson = _teach(model, heads, batch, run.first_position)
    rate = run.config.learning_rate * _schedule(run.step, round(run.config.warmup * n_steps), n_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.step, run.tokens = run.step + 1, run.tokens + len(lesson.choice)
    rows = []
    for depth in heads.depths:
        logits = heads.logits(depth, lesson.states[depth]).float()
        if run.config.loss == "kl":  # cross-entropy less the teacher's own entropy, which has no gradient
            loss = F.cross_entropy(logits, lesson.target) - lesson.entropy.mean()
        else:
            loss = F.cross_entropy(logits, lesson.target.argmax(-1))
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"The loss at depth {depth} is {loss.item()} at step {run.step}. The last checkpoint is kept; "
                f"lower learning_rate ({run.config.learning_rate}) or check the text."
            )
        loss.backward()
        agreement = (heads.tokens(logits.detach()) == lesson.choice).float().mean().item()
        rows.append(
            {"step": run.step, "tokens": run.tokens, "depth": depth, "loss": loss.item(), "agreement": agreement,
             "learning_rate": rate}
        )  # fmt: skip
        own = [*heads.maps[str(depth)].parameters()]
        own += [*heads.others[str(depth)].parameters()] if heads.others else []
        torch.nn.utils.clip_grad_norm_(own, run.config.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return rows


@dataclass(frozen=True)
class _Lesson:
    """What the frozen model says at the positions of a batch that count.

    states: at each head's depth, [token, hidden]. target: its probabilities over the heads' classes, [token, classes],
    float32. entropy: of the target, nats, [token]. choice: its most likely token, [token].
    """

    states: dict[int, Tensor]
    target: Tensor
    entropy: Tensor
    choice: Tensor


@torch.no_grad()
def _teach(model, heads: ExitHeads, batch: Sequence[Tensor], first_position: int, rows: int = 128) -> _Lesson:
    backbone = Backbone.of(model)
    tokens, real = pad(batch, first_position)
    states = backbone.states(tokens.to(model.device), [*heads.depths, backbone.n_blocks])
    states = {depth: state[real.to(state.device)] for depth, state in states.items()}
    targets, choices = [], []
    for hidden in states.pop(backbone.n_blocks).split(rows):  # the whole vocabulary at once for a few rows only
        teacher = backbone.unembed(hidden)
        choices.append(teacher.argmax(-1))
        targets.append(_over_classes(heads, teacher))
    target = torch.cat(targets)
    return _Lesson(states, target, torch.special.entr(target).sum(-1), torch.cat(choices))


def _over_classes(heads: ExitHeads, teacher: Float[Tensor, "token vocab"]) -> Float[Tensor, "token classes"]:
    """The model's probabilities over the heads' classes, float32; "other" gets all that is not drafted."""
    probabilities = teacher.softmax(-1, dtype=torch.float32)
    if heads.draft_tokens is None:
        return probabilities
    drafted = probabilities[:, heads.draft_tokens]
    return torch.cat([drafted, (1 - drafted.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)


def _schedule(step: int, warmup_steps: int, n_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, n_steps - warmup_steps)))
