"""Early-exit heads: from a hidden state to logits over the (drafted) vocabulary."""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.fingerprints import sketch
from eelib.backbone.segments import Backbone
from eelib.backbone.teacher import TeacherOutputs
from eelib.backbone.tokens import sequences_of
from eelib.display import shown, table_html
from eelib.errors import HeadsError, InvalidInputError
from eelib.heads.hub import check_weights, push_heads, read_heads, write_heads
from eelib.heads.kinds import DraftedRows, MixedLinear, make_map
from eelib.settings import COUNT, SEED, Number, check_known, flag, settle

KINDS = ("mlp", "affine", "linear", "none", "fused")


@dataclass(frozen=True)
class HeadConfig:
    """Settings of exit heads.

    Attributes:
        depths: number of blocks below each head, ascending.
        kind: `mlp`, a gated MLP beside a linear map, both residual, before the model's own final norm and unembedding,
            which stay frozen and shared; `affine`, the linear map alone (tuned lens, arXiv 2303.08112); `linear`, an
            untied norm and unembedding (the author's); `none`, nothing (logit lens); `fused`, a gated MLP and a linear
            map that also read the unembedding's input one position back, which the full model has verified by then (as
            in EAGLE, arXiv 2401.15077): for drafting from a shallow depth, so only with verification.
        draft_vocab_size: number of tokens that a head may draft; None for all. One more class, "other", then stands for
            the rest; it counts in every score and is never drafted.
        width: inner width of the MLP; None for the model's hidden size, twice that for `fused`.
        seed: of the initial weights.
        skip: whether an MLP has the linear map beside it.

    Raises:
        InvalidInputError: a setting is out of range, or two exclude each other.

    Example:
        >>> HeadConfig(depths=[6, 12]).depths
        (6, 12)
    """

    depths: Sequence[int]
    kind: str = "mlp"
    draft_vocab_size: int | None = None
    width: int | None = None
    seed: int = 0
    skip: bool = True

    def __post_init__(self):
        settle(self, depths=_depths, width=replace(COUNT, most=2**16, optional=True), skip=flag, seed=SEED)
        settle(self, draft_vocab_size=Number(least=2, whole=True, optional=True))
        check_known("kind of head", self.kind, KINDS)
        if self.draft_vocab_size is not None and self.kind in ("linear", "none"):
            raise InvalidInputError(f"kind={self.kind!r} scores the whole vocabulary: omit draft_vocab_size.")


def _depths(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if np.ndim(values) != 1:
        raise InvalidInputError(f"{name}={values!r}: expected numbers of blocks, such as (6, 12).")
    return tuple(COUNT(name, value) for value in values)


class ExitHeads(nn.Module):
    """Exit heads on one frozen backbone, one per depth.

    Create them with `init` or `from_pretrained`. Classes are tokens, or with a draft vocabulary of V' tokens: class c <
    V' is the token draft_tokens[c], and the last class is "other".

    Example:
        >>> heads = ExitHeads.init(model, depths=[2, 4], kind="affine")
        >>> hidden = heads.backbone.states(input_ids, [2])[2]
        >>> heads.logits(2, hidden).shape == (*input_ids.shape, model.config.vocab_size)
        True
    """

    def __init__(self, config: HeadConfig, model: PreTrainedModel, draft_tokens: Int[Tensor, " draft"] | None):
        super().__init__()
        backbone = Backbone.of(model)
        backbone.check_depths(config.depths)
        self.config = config
        self.training_record: dict = {}
        self.policy_record: dict = {}  # of `eelib.decoding.keep_policy`
        self._fingerprint: tuple[list, str] = ([], "")
        self._of = (backbone, backbone.model)  # a tuple, so that the model's weights are not registered here
        hidden_size, width = backbone.hidden_size, backbone.unembedding.weight.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            maps = {
                str(d): make_map(config.kind, config.width, config.skip, backbone.unembedding, hidden_size)
                for d in config.depths
            }
            self.maps = nn.ModuleDict(maps)
            self.others = nn.ModuleDict()
            if draft_tokens is not None:
                self.others.update({str(depth): MixedLinear(width, 1) for depth in config.depths})
        self.register_buffer("draft_tokens", draft_tokens)
        self._rows = None if draft_tokens is None else DraftedRows(backbone.unembedding, draft_tokens)
        self.to(model.device)

    @classmethod
    def init(
        cls,
        model: PreTrainedModel,
        depths: int | Sequence[int],
        kind: str = "mlp",
        draft_vocab_size: int | None = None,
        *,
        width: int | None = None,
        skip: bool = True,
        seed: int = 0,
        sequences: Sequence[Tensor] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> "ExitHeads":
        """Untrained heads at `depths`, or at that many evenly spaced depths.

        Args:
            sequences: text of the model's own, whose most frequent tokens form the draft vocabulary.
            tokenizer: names the special tokens, which are always in it.

        Raises:
            InvalidInputError: a setting is out of range.
            ModelError: the model cannot be split into blocks.
        """
        config = HeadConfig(Backbone.of(model).check_depths(depths), kind, draft_vocab_size, width, seed, skip)
        draft_tokens = None
        if draft_vocab_size is not None:
            if sequences is None or tokenizer is None:
                raise InvalidInputError("draft_vocab_size needs `sequences` and `tokenizer` to choose its tokens.")
            draft_tokens = frequent_tokens(sequences, draft_vocab_size, model, tokenizer)
        return cls(config, model, draft_tokens)

    def __deepcopy__(self, memo: dict) -> "ExitHeads":
        """Copy of the heads, on the same model."""
        memo |= {id(shared): shared for shared in (self._of, *self._of, self.backbone.unembedding)}
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def __getstate__(self):
        raise HeadsError(
            "Heads cannot be pickled, since their model would go with them: use `save_pretrained` and "
            "`from_pretrained`, or torch.save their state_dict()."
        )

    def __repr__(self) -> str:
        return f"ExitHeads({self.config.kind}, at depths {shown(self.depths)} of {self.backbone.n_blocks})"

    def _repr_html_(self) -> str:
        agreement = {row["depth"]: row["agreement"] for row in self.training_record.get("validation", [])}
        drafted = self.config.draft_vocab_size or self.backbone.vocab_size
        rows = [
            ("kind", self.config.kind), ("depths", f"{shown(self.depths)} of {self.backbone.n_blocks} blocks"),
            ("draft vocabulary", f"{drafted:,} of {self.backbone.vocab_size:,} tokens"),
            ("parameters trained", self.parameter_count()["trained"]),
        ]  # fmt: skip
        rows += [("agreement on held-out text, by depth", agreement)] if agreement else []
        return table_html("ExitHeads", rows)

    @property
    def depths(self) -> tuple[int, ...]:
        return self.config.depths

    @property
    def backbone(self) -> Backbone:
        return self._of[0]

    def parameters_of(self, depth: int) -> list[nn.Parameter]:
        """Trainable parameters of the head at `depth`."""
        other = [*self.others[str(depth)].parameters()] if self.others else []
        return [*self.maps[str(depth)].parameters(), *other]

    def parameter_count(self) -> dict[str, int]:
        """Number of parameters, as a dict.

        `own`: added in memory, copied unembedding rows included; `trained`: trainable ones.
        """
        trained = sum(p.numel() for p in self.parameters())
        return {"trained": trained, "own": trained + (0 if self._rows is None else self._rows.weight.numel())}

    def weights(self, depth: int) -> tuple[int, int]:
        """Number of weights of a head: own, and read per call.

        The latter include rows shared with other heads.
        """
        own = sum(p.numel() for p in self.parameters_of(depth))
        if self.config.kind == "linear":
            return own, own
        return own, own + (self._rows or self.backbone.unembedding).weight.numel()

    def fingerprint(self) -> str:
        """SHA-256 of the heads and their backbone, the same for each dtype."""
        tensors = self.state_dict()
        state = [*self.backbone.state(), *((tensor.data_ptr(), tensor._version) for tensor in tensors.values())]
        if self._fingerprint[0] != state:  # hashing takes longer than a token
            digest = hashlib.sha256((self.backbone.fingerprint() + json.dumps(asdict(self.config))).encode())
            for name, tensor in sorted(tensors.items()):
                values = tensor.to(torch.bfloat16).view(torch.int16) if tensor.is_floating_point() else tensor
                digest.update(name.encode() + values.cpu().numpy().tobytes())
            self._fingerprint = state, digest.hexdigest()
        return self._fingerprint[1]

    @property
    def reads_previous(self) -> bool:
        """Whether heads also read the unembedding's previous input (kind `fused`)."""
        return self.config.kind == "fused"

    def final(
        self, depth: int, hidden: Float[Tensor, "... hidden"], previous: Float[Tensor, "... width"] | None = None
    ) -> Float[Tensor, "... width"]:
        """The head's prediction of the unembedding's input, from states at `depth`.

        Args:
            previous: for `fused` heads, the unembedding's input one position back; where the full model has not
                computed it yet, the head's own prediction.

        Raises:
            HeadsError: `fused` heads without `previous`.
        """
        of_depth = self.maps[str(depth)]
        if self.reads_previous:
            if previous is None:
                raise HeadsError(
                    "Heads of kind 'fused' also read the unembedding's input one position back (`previous`), which "
                    "exists only where the full model verifies each draft. Use heads of another kind here."
                )
            return self.backbone.normalise(of_depth(hidden, previous))
        return of_depth(hidden) if self.config.kind == "linear" else self.backbone.normalise(of_depth(hidden))

    def read(
        self, depth: int, final: Float[Tensor, "... width"], tokens: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "... classes"]:
        """Logits over a head's classes, from the output of `final`.

        Args:
            tokens: indices of classes; None for all. "other" is always included.
        """
        if self.config.kind == "linear":
            logits = self.maps[str(depth)].unembedding(final)
            return logits if tokens is None else logits[..., tokens]
        logits = self._unembed_classes(final, tokens)
        return logits if self.draft_tokens is None else torch.cat([logits, self.others[str(depth)](final)], dim=-1)

    def logits(
        self, depth: int, hidden: Float[Tensor, "... hidden"], previous: Float[Tensor, "... width"] | None = None
    ) -> Float[Tensor, "... classes"]:
        """Logits over the classes of the head at `depth`.

        Arguments and errors are those of `final`.
        """
        return self.read(depth, self.final(depth, hidden, previous))

    def teacher_probabilities(self, outputs: TeacherOutputs) -> Float[Tensor, "token classes"]:
        """The teacher's probabilities over the heads' classes, in float32.

        "other" gets the mass of all tokens that are not drafted.
        """
        target = (self._unembed_classes(outputs.final).float() - outputs.log_normaliser[:, None]).exp()
        if self.draft_tokens is None:
            return target
        return torch.cat([target, (1 - target.sum(-1, keepdim=True)).clamp(min=0)], dim=-1)

    def _unembed_classes(self, normed: Float[Tensor, "... width"], tokens: Tensor | None = None) -> Tensor:
        """Logits of the classes that are tokens, or of some of them."""
        rows = self._rows or self.backbone.unembedding
        if tokens is None:
            return self.backbone.postprocess(rows(normed))
        bias = getattr(rows, "bias", None)
        some = F.linear(normed, rows.weight[tokens].to(normed.dtype), None if bias is None else bias[tokens])
        return self.backbone.postprocess(some)

    def full_logits(
        self, depth: int, hidden: Float[Tensor, "... hidden"], previous: Float[Tensor, "... width"] | None = None
    ) -> Float[Tensor, "... vocab"]:
        """Logits of a head over the whole vocabulary, for scoring benchmarks."""
        final = self.final(depth, hidden, previous)
        if self.config.kind == "linear":
            return self.read(depth, final)
        return self.backbone.postprocess(self.backbone.unembedding(final))

    def drafted_tokens(self, logits: Float[Tensor, "... classes"]) -> Int[Tensor, "..."]:
        """Drafted token of each row; -1 where "other" leads (declined)."""
        classes = logits.argmax(dim=-1)
        if self.draft_tokens is None:
            return classes
        return torch.cat([self.draft_tokens, self.draft_tokens.new_tensor([-1])])[classes]

    def widen(self, logits: Float[Tensor, "... classes"]) -> Float[Tensor, "... vocab"]:
        """Logits over the whole vocabulary, -inf for tokens that are not drafted.

        "other" is left out.
        """
        if self.draft_tokens is None:
            return logits
        wide = logits.new_full((*logits.shape[:-1], self.backbone.vocab_size), float("-inf"))
        return wide.index_copy_(-1, self.draft_tokens, logits[..., :-1])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and a model card, each atomically."""
        model = self._of[1]
        described = {
            "eelib_version": version("eelib"),
            "backbone": model.config._name_or_path,
            "revision": getattr(model.config, "_commit_hash", None),
            "fingerprint": self.backbone.fingerprint(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "sketch": sketch(self.backbone.model),
            "n_blocks": self.backbone.n_blocks,
            "heads": asdict(self.config),
            "parameters": self.parameter_count(),
            "training": self.training_record,
            "policy": self.policy_record,
        }
        write_heads(folder, described, self.state_dict())

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to a Hub repository, in one commit.

        The repository is created if needed. Returns the commit's URL; errors are huggingface_hub's own.
        """
        return push_heads(self.save_pretrained, repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(cls, name: str | Path, model: PreTrainedModel, force: bool = False) -> "ExitHeads":
        """Load heads from a folder or the Hub, onto a model.

        They take the model's dtype and device.

        Args:
            force: load heads of another backbone all the same.

        Raises:
            HeadsError: no heads there, or heads of another backbone.
        """
        folder, described, tensors = read_heads(name)
        backbone = Backbone.of(model)
        types = {str(described.get("dtype")), str(backbone.model.dtype).removeprefix("torch.")}
        if "float16" in types and len(types) > 1:
            backbone.recognise(described["fingerprint"], described.get("sketch", []))
        model, fingerprint = backbone.model, backbone.fingerprint()
        if described["fingerprint"] != fingerprint and not force:
            raise HeadsError(
                f"The heads in {folder} belong to another backbone: they were made for {described['backbone']} "
                f"(fingerprint {described['fingerprint'][:12]}), and this is {model.config._name_or_path} "
                f"({fingerprint[:12]}). Load that model, train heads for this one, or pass force=True."
            )
        try:
            config = HeadConfig(**described["heads"])
            backbone.check_depths(config.depths)
        except (TypeError, InvalidInputError) as error:
            raise HeadsError(
                f"{folder / 'config.json'} describes no heads that this model can have: {error}"
            ) from error
        check_weights(config, backbone, tensors, folder)
        heads = cls(config, model, tensors.get("draft_tokens"))
        heads.load_state_dict(tensors)
        heads.training_record, heads.policy_record = described["training"], described.get("policy", {})
        return heads.to(model.dtype).to(model.device).requires_grad_(False)


def frequent_tokens(
    sequences: Sequence[Tensor], size: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Int[Tensor, " draft"]:
    """Draft vocabulary: all special tokens, and the most frequent ones, ascending.

    Frequencies in text sampled from the model estimate what it emits (as FR-Spec ranks its vocabulary, arXiv
    2502.14856). Ties go to the lower token, which in a byte-pair vocabulary is the earlier and commoner merge.
    """
    vocab_size = Backbone.of(model).vocab_size
    if size >= vocab_size:
        raise InvalidInputError(f"draft_vocab_size={size}: expected fewer than the model's {vocab_size} tokens.")
    rows = sequences_of(sequences, vocab_size)
    if not rows:
        raise InvalidInputError("No sequences to choose the draft vocabulary by.")
    counts = torch.bincount(torch.cat(rows).cpu(), minlength=vocab_size).double()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = model.generation_config.eos_token_id
    special |= set(tokenizer.all_special_ids) | set(ends if isinstance(ends, list) else [ends] if ends else [])
    counts[sorted(i for i in special if i < vocab_size)] = float("inf")
    return torch.sort(torch.sort(counts, descending=True, stable=True).indices[:size]).values.to(model.device)
