"""Self-distillation: heads learn the full model's predictions (arXiv 2407.21082)."""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from eelib.backbone.teacher import Teacher
from eelib.backbone.tokens import masked_sequences
from eelib.errors import CorpusError, HeadsError, TrainingError
from eelib.heads.exit_heads import ExitHeads
from eelib.heads.lessons import Batches, Lesson, in_a_row
from eelib.heads.loss import LOSSES, DistillationLoss
from eelib.heads.report import Report
from eelib.settings import COUNT, POSITIVE, SEED, Number, check_known, settle
from eelib.workspace import expanded, read_tensors, write_tensors


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training.

    Attributes:
        epochs: passes over the sequences.
        batch_size: sequences per step.
        shuffle_buffer: sequences whose tokens are shuffled among their steps, so that a step sees a little of many
            texts; up to `batch_size` there is no shuffling.
        learning_rate: peak rate of AdamW, after a linear warm-up and before a cosine decay to zero.
        warmup: share of steps for the warm-up.
        max_grad_norm: clipping norm of each head's gradients.
        loss: `kl`, KL(teacher || head) in nats, or `cross_entropy` with the teacher's argmax; mean over tokens.
        sampled_classes: estimate the loss from the classes likeliest for a token of the step and this many random
            others (importance sampling of the normaliser, Bengio & Senecal 2008), which is faster; None for all
            classes.
        drafts: consecutive drafts that `fused` heads learn; after the first, their own prediction stands in for the
            unembedding's input, and the loss weighs half.
        log_every: steps between rows of the report.
        checkpoint_every: steps between checkpoints.
        seed: of the order of the sequences.

    Raises:
        InvalidInputError: a setting is out of range.

    Example:
        >>> TrainConfig(learning_rate="1e-3").learning_rate
        0.001
    """

    epochs: int = 2
    batch_size: int = 4
    shuffle_buffer: int = 64
    learning_rate: float = 3e-3
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    loss: str = "kl"
    sampled_classes: int | None = None
    drafts: int = 3
    log_every: int = 10
    checkpoint_every: int = 25
    seed: int = 0

    def __post_init__(self):
        check_known("loss", self.loss, LOSSES)
        counts = ("epochs", "batch_size", "shuffle_buffer", "drafts", "log_every", "checkpoint_every")
        settle(self, **dict.fromkeys(counts, COUNT), **dict.fromkeys(("learning_rate", "max_grad_norm"), POSITIVE))
        settle(self, warmup=Number(least=0, below=1), sampled_classes=replace(COUNT, optional=True), seed=SEED)


def train_heads(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Sequence[Tensor],
    config: TrainConfig,
    *,
    loss_mask: Sequence[Tensor] | None = None,
    teacher: Teacher | None = None,
    validation: Sequence[Tensor] = (),
    validation_loss_mask: Sequence[Tensor] | None = None,
    checkpoint: str | Path | None = None,
    keep_checkpoint: bool = False,
    log: str | Path | None = None,
    tensorboard: str | Path | None = None,
) -> pd.DataFrame:
    """Train heads in place to match the frozen model's distribution.

    They end in the model's dtype. Under `accelerate launch` every process takes its share of each step's sequences; the
    gradients, and so the heads, are those of one process, up to the order of additions.

    Args:
        sequences: 1-D LongTensors, one per document.
        loss_mask: for each a mask of the positions to train on (`Corpus.loss_mask`); None for all.
        teacher: computes or caches teacher outputs; None runs the model at every step.
        validation: held-out sequences; agreement and loss on them go into `heads.training_record`.
        validation_loss_mask: their masks.
        checkpoint: file from which a killed call with the same arguments resumes; deleted at the end. The result is
            that of an uninterrupted run, bit for bit on a CPU.
        keep_checkpoint: keep that file, so that a repeated call returns at once, even if later work was killed.
        log: file for the rows of the report as they come, one JSON object a line.
        tensorboard: folder for TensorBoard's event files (extra `track`).

    Returns:
        One row per logged step and head: step, tokens, depth, loss [nats], agreement (share of tokens where the head's
        argmax is the model's), learning_rate, tokens_per_second.

    Raises:
        CorpusError: no sequences, or no position that counts.
        HeadsError: nothing to train.
        TrainingError: the loss is not finite, or the checkpoint is another run's or cannot be written.

    Example:
        >>> heads = ExitHeads.init(model, depths=[2, 4], kind="affine")
        >>> report = train_heads(model, heads, sequences, TrainConfig(epochs=1, log_every=1))
        >>> sorted(set(report.depth))
        [2, 4]
    """
    n_tokens = heads.backbone.n_tokens
    sequences, loss_mask = masked_sequences(sequences, loss_mask, n_tokens)
    validation, validation_loss_mask = masked_sequences(validation, validation_loss_mask, n_tokens)
    if not sequences:
        raise CorpusError("No sequences to train on: the training split is empty.")
    if loss_mask is not None and not any(mask.any() for mask in loss_mask):
        raise CorpusError(
            "Nothing to train on: the loss mask lets no position through. For self-generated text, use a greater "
            "length or a smaller prompt_length, so that the user's words leave room for the model's."
        )
    if not any(True for _ in heads.parameters()):
        raise HeadsError(f"Heads of kind {heads.config.kind!r} have nothing to train: use another kind.")
    teacher = Teacher(model, heads.depths) if teacher is None else teacher
    heads.float().requires_grad_(True)
    run = _Run(heads, config, sequences, loss_mask, None if checkpoint is None else expanded(checkpoint))
    run.restore()
    state = PartialState()
    steps = Batches(
        sequences, loss_mask, epochs=config.epochs, batch_size=config.batch_size, shuffle_buffer=config.shuffle_buffer,
        seed=config.seed, drafts=config.drafts if heads.reads_previous else None,
    )  # fmt: skip
    with (
        Report(run.log, log, tensorboard, state.is_main_process) as report,
        tqdm(
            total=len(steps), initial=run.step, desc="training heads", unit="step", disable=not state.is_main_process
        ) as bar,
    ):
        started, tokens_before = time.perf_counter(), run.tokens
        for lesson in steps.lessons(teacher, first=run.step):
            rows = _train_step(heads, lesson, run, len(steps))
            seconds = time.perf_counter() - started
            bar.update()
            if run.logs(len(steps)):
                speed = (run.tokens - tokens_before) / seconds
                report.add([{**row, "tokens_per_second": speed} for row in rows])
                bar.set_postfix_str(f"loss {rows[-1]['loss']:.2f} at depth {rows[-1]['depth']}, {speed:.0f} tokens/s")
            if run.step % config.checkpoint_every == 0 and run.step < len(steps) and state.is_main_process:
                run.save()
    if state.is_main_process and keep_checkpoint:
        run.save()
    heads.to(model.dtype).requires_grad_(False)
    measured = evaluate_heads(model, heads, validation, validation_loss_mask).to_dict("records") if validation else []
    heads.training_record = {
        "config": asdict(config), "sequences": len(sequences), "tokens": run.tokens, "validation": measured,
    }  # fmt: skip
    if state.is_main_process and not keep_checkpoint:
        run.finish()
    return pd.DataFrame(run.log)


@torch.no_grad()
def evaluate_heads(
    model: PreTrainedModel,
    heads: ExitHeads,
    sequences: Sequence[Tensor],
    loss_mask: Sequence[Tensor] | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Held-out loss (KL, nats) and agreement with the full model, per depth.

    Means over the positions that the loss masks let through (None: all), one row per head. `fused` heads are evaluated
    on their first draft, at positions that follow another one that counts.

    Raises:
        CorpusError: no sequences.
        InvalidInputError: not token ids, or masks of other lengths.

    Example:
        >>> list(evaluate_heads(model, heads, sequences).columns)
        ['depth', 'loss', 'agreement']
    """
    sequences, loss_mask = masked_sequences(sequences, loss_mask, heads.backbone.n_tokens)
    if not sequences:
        raise CorpusError("No sequences to evaluate heads on.")
    sums, tokens, teacher = {depth: [0.0, 0] for depth in heads.depths}, 0, Teacher(model, heads.depths)
    for start in range(0, len(sequences), batch_size):
        texts = sequences[start : start + batch_size]
        masks = None if loss_mask is None else loss_mask[start : start + batch_size]
        outputs, previous = teacher.outputs(texts, masks), None
        if heads.reads_previous:
            rows = in_a_row(texts, masks, 2).nonzero()[:, 0]
            previous, outputs = outputs.final[rows], outputs.select(rows + 1)
        target = heads.teacher_probabilities(outputs)
        entropy = torch.special.entr(target).sum(-1)
        tokens += len(outputs.argmax)
        for depth in heads.depths:
            logits = heads.logits(depth, outputs.states[depth], previous).float()
            sums[depth][0] += (F.cross_entropy(logits, target, reduction="none") - entropy).sum().item()
            sums[depth][1] += (heads.drafted_tokens(logits) == outputs.argmax).sum().item()
    return pd.DataFrame(
        [{"depth": d, "loss": loss / tokens, "agreement": agreed / tokens} for d, (loss, agreed) in sums.items()]
    )


class _Run:
    """State of training, checkpointed in one file."""

    def __init__(self, heads, config: TrainConfig, sequences, loss_mask, path: Path | None):
        self.heads, self.config, self.path = heads, config, path
        self.step, self.tokens, self.log = 0, 0, []
        self.optimizer = torch.optim.AdamW(heads.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
        digest = hashlib.sha256(repr((config, heads.config, heads.backbone.fingerprint())).encode())
        for sequence in [*sequences, *(loss_mask or ())]:
            digest.update(sequence.numpy().tobytes())
        self.identity = digest.hexdigest()

    def restore(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        tensors, state = read_tensors(self.path, TrainingError, scratch=True)
        if state.get("identity") != self.identity:
            raise TrainingError(
                f"{self.path} is the checkpoint of another run (other text, heads, model or settings). Delete it to "
                "start over, or restore the settings."
            )
        self.step, self.tokens, self.log = state["step"], state["tokens"], state["log"]
        shapes = {name: parameter.shape for name, parameter in self.heads.named_parameters()}
        expected = {f"{name}.{key}": of for name, of in shapes.items() for key in ("value", "exp_avg", "exp_avg_sq")}
        expected |= {f"{name}.step": torch.Size([]) for name in shapes}
        if {name: tensor.shape for name, tensor in tensors.items()} != expected:
            raise TrainingError(f"{self.path} has other weights than these heads: delete it to start over.")
        for name, parameter in self.heads.named_parameters():
            parameter.data.copy_(tensors[f"{name}.value"])
            moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": tensors[f"{name}.step"], **moments}

    def logs(self, n_steps: int) -> bool:
        """Whether the current step goes into the report."""
        return self.step % self.config.log_every == 0 or self.step == n_steps

    def save(self) -> None:
        if self.path is None:
            return
        tensors = {}
        for name, parameter in self.heads.named_parameters():
            tensors[f"{name}.value"] = parameter.data
            tensors.update({f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()})
        state = {"identity": self.identity, "step": self.step, "tokens": self.tokens, "log": self.log}
        try:
            write_tensors(self.path, tensors, state)
        except OSError as error:
            raise TrainingError(
                f"The checkpoint of step {self.step} cannot be written to {self.path}: {error}. The previous one is "
                "kept: free disk space and run this again."
            ) from error

    def finish(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _train_step(heads: ExitHeads, lesson: Lesson | None, run: _Run, n_steps: int) -> list[dict]:
    """One step of all heads, one after the other.

    Their losses share nothing, so memory holds one at a time.

    Args:
        lesson: this process's share; None for none.
    """
    rate = run.config.learning_rate * _schedule(run.step, round(run.config.warmup * n_steps), n_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    device = heads.backbone.model.device
    tokens = reduce(torch.tensor(0.0 if lesson is None else float(len(lesson)), device=device), "sum").item()
    run.step, run.tokens = run.step + 1, run.tokens + int(tokens)
    tokens = max(tokens, 1.0)  # a step of texts of which no position counts teaches nothing
    config, logged = run.config, run.logs(n_steps)
    distillations = [
        DistillationLoss(heads, outputs, config.loss, config.sampled_classes, seed=(config.seed << 32) + run.step)
        for outputs in (() if lesson is None else lesson.outputs)
    ]
    rows = []
    for depth in heads.depths:
        parameters, sums = heads.parameters_of(depth), torch.zeros(2, device=device)
        previous, whole = None if lesson is None else lesson.previous, torch.zeros((), device=device)
        for draft, distillation in enumerate(distillations):
            loss, agreed, previous = distillation.of_head(depth, previous, agreement=logged and not draft)
            whole = whole + loss * (0.5 if draft else 1.0)
            if not draft:
                sums = torch.stack([loss.detach(), agreed])
        if distillations:
            (whole / tokens).backward()
        loss, agreement = (reduce(sums, "sum") / tokens).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss at depth {depth} is {loss} at step {run.step}. The last checkpoint is kept; "
                f"lower learning_rate ({run.config.learning_rate}) or check the text."
            )
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(parameter.grad, "sum")
        torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm)
        rows.append({
            "step": run.step, "tokens": run.tokens, "depth": depth, "loss": loss, "agreement": agreement,
            "learning_rate": rate,
        })  # fmt: skip
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return rows


def _schedule(step: int, warmup_steps: int, n_steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine decay.

    A function of the step alone, so that a resumed run needs no scheduler state; transformers' own spends the first
    step at rate 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, n_steps - warmup_steps)))
