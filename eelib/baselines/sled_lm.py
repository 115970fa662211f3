"""SLED as a model of lm-evaluation-harness: every token is scored by evolved logits. Needs the extra `bench`."""

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eelib.backbone.segments import Backbone
from eelib.baselines.sled import evolve_logits
from eelib.heads.exit_heads import ExitHeads


class SledLM(HFLM):
    """Scores texts by `sled`; generation is the plain model's.

    Args:
        exits: the layers that are heard; heads of kind `none` read them by the model's logit lens, as SLED does.
        steps: T; the paper takes 10 for TruthfulQA.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        exits: ExitHeads,
        *,
        steps: int = 10,
        **settings,
    ):
        super().__init__(model, tokenizer=tokenizer, **settings)
        self.exits, self.steps = exits, steps

    @torch.no_grad()
    def _model_call(self, inps: Tensor, **kwargs) -> Tensor:
        backbone = Backbone.of(self.model)
        states = backbone.states(inps.to(self.model.device), [*self.exits.depths, backbone.n_blocks])
        early = [self.exits.full_logits(depth, states[depth]) for depth in self.exits.depths]
        return evolve_logits(backbone.unembed(states[backbone.n_blocks]), early, steps=self.steps)
