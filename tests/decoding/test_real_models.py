"""Is the text of real models their own? The offline one's, with heads made here; larger ones', after `make sizes`."""

import pandas as pd
import pytest
from tiny import PROJECT, write_results

import eelib
from eelib import evaluation, plotting
from eelib.backbone.loading import batch_dtype
from eelib.errors import UnsupportedError
from eelib.heads import make_heads
from eelib.packaged.places import model_is_there

pytestmark = pytest.mark.timeout(900)

ENTROPIES = {f"entropy up to {nats} nats": eelib.Confidence("entropy", (-nats,) * 4) for nats in (0.3, 1.0, 2.0)}


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> eelib.Workspace:
    """Heads of little text: enough to draft with."""
    workspace = eelib.Workspace("small", tmp_path_factory.mktemp("offline"))
    corpus = {"documents": 120, "length": 56, "prompts": None, "invent": False, "prompt_length": 16}
    changes = {"corpus": corpus, "heads": {"draft_vocab_size": 2048}}
    recipe = eelib.Recipe.load(PROJECT / "config" / "heads.yaml", changes, seed=0)
    make_heads(recipe, *eelib.load_model("smollm2-135m", dtype=batch_dtype("bfloat16"), device="cpu"), workspace)
    return workspace


def test_offline_model_is_lossless_in_float32(offline):
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="float32", device="cpu")
    heads, prompts = eelib.ExitHeads.from_pretrained(offline.heads, model), evaluation.load_prompts(tokenizer, 2)
    table = eelib.verify_lossless(model, heads, ENTROPIES["entropy up to 2.0 nats"], prompts, max_new_tokens=24)
    assert (table.equal | table.near_tie).all() and table.drafted.sum() > 0


def test_offline_model_is_lossless_in_bfloat16_bit_for_bit(offline):
    """By as many positions at once as this machine's kernels allow; where they allow none, it says so."""
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16", device="cpu")
    heads, prompts = eelib.ExitHeads.from_pretrained(offline.heads, model), evaluation.load_prompts(tokenizer, 2)
    policies = {"DSSD": ENTROPIES["entropy up to 2.0 nats"], "fixed": eelib.FixedExit(12, 4)}
    try:
        table = eelib.verify_lossless(model, heads, policies, prompts, exact=True, max_new_tokens=24)
    except UnsupportedError as refusal:
        assert "Leave exact out" in str(refusal)
    else:
        assert table.equal.all() and (table.groupby("policy").drafted.sum() > 0).all()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_offline_model_is_lossless_in_float32_at_length(offline):
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="float32", device="cpu")
    heads, prompts = eelib.ExitHeads.from_pretrained(offline.heads, model), evaluation.load_prompts(tokenizer, 20)
    table = eelib.verify_lossless(model, heads, ENTROPIES, prompts, max_new_tokens=64)
    write_results("lossless_offline_float32", table)
    assert (table.equal | table.near_tie).all()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_offline_model_is_lossless_in_bfloat16_at_length(offline):
    """60 prompts x 128 tokens x 4 policies: not one token differs; and what happens without `exact`, for a fifth."""
    model, tokenizer = eelib.load_model("smollm2-135m", dtype="bfloat16", device="cpu")
    heads, prompts = eelib.ExitHeads.from_pretrained(offline.heads, model), evaluation.load_prompts(tokenizer, 60)
    policies = ENTROPIES | {"FixedExit(12, 4)": eelib.FixedExit(12, 4)}
    exact = eelib.verify_lossless(model, heads, policies, prompts, exact=True, max_new_tokens=128)
    plain = eelib.verify_lossless(model, heads, policies, prompts[:12], max_new_tokens=128)
    table = pd.concat([exact.assign(exact=True), plain.assign(exact=False)])
    write_results("lossless_offline_bfloat16", table)
    draw_lossless(table, n_tokens=128)
    assert exact.equal.all() and len(exact) == 240


@pytest.fixture(scope="module", params=["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def larger(request, tmp_path_factory) -> tuple[str, eelib.Workspace]:
    """A larger model's name, and heads of little text, enough to draft with."""
    name = request.param
    if not model_is_there(PROJECT / "data" / "models" / name):
        pytest.skip(f"needs the weights of: make models MODEL={name}")
    corpus = {"documents": 40, "length": 192, "batch_size": 20}
    recipe = eelib.Recipe.load(PROJECT / "config" / "code_heads.yaml", {"corpus": corpus}, seed=0)
    workspace = eelib.Workspace("small", tmp_path_factory.mktemp(name))
    make_heads(recipe, *eelib.load_model(name, dtype=batch_dtype("bfloat16"), device="cpu"), workspace)
    return name, workspace


@pytest.mark.slow
@pytest.mark.timeout(14400)
@pytest.mark.parametrize(("dtype", "n_prompts", "exact"), [("bfloat16", 40, True), ("float32", 10, False)])
def test_larger_models_are_lossless_at_length(larger, dtype, n_prompts, exact):
    """Tasks of HumanEval x 128 tokens."""
    name, workspace = larger
    model, tokenizer = eelib.load_model(name, dtype=dtype, device="cpu")
    heads = eelib.ExitHeads.from_pretrained(workspace.heads, model)
    prompts = evaluation.load_prompts(tokenizer, n_prompts, file="code_description")
    policies = {"max_prob from 0.5": eelib.Confidence("max_prob", (0.5,) * len(heads.depths))}
    table = eelib.verify_lossless(model, heads, policies, prompts, exact=exact, max_new_tokens=128)
    write_results(f"lossless_{name}_{dtype}", table.assign(dtype=dtype, exact=exact))
    assert (table.equal.all() if exact else (table.equal | table.near_tie).all()) and table.drafted.sum() > 0


def draw_lossless(table, n_tokens):
    """docs/results/lossless_offline_bfloat16_figure: how long texts stay the model's own, with and without `exact`."""
    plotting.use_style()
    figure, (axes,) = plotting.panels(1, width=plotting.COLUMN, height=2.2)
    plotted = []
    for i, ((exact, policy), cases) in enumerate(table.groupby(["exact", "policy"], sort=False)):
        parted = cases.first_mismatch.where(~cases.equal, n_tokens)
        still = [(parted >= n).mean() for n in range(n_tokens + 1)]
        style = {"color": "0.2", "linewidth": 2} if exact else {"color": plotting.PALETTE[i % 4]}
        style["linestyle"] = "-" if exact else plotting.LINES[i % 4]
        axes.plot(still, label=None if exact and i else "exact, all four" if exact else policy, **style)
        plotted += [{"exact": exact, "policy": policy, "tokens": n, "share": s} for n, s in enumerate(still)]
    axes.set(xlabel="new tokens", ylabel="share of texts that are\nstill the model's own", ylim=(0, 1.05))
    axes.legend(fontsize=5.5, loc="lower left")
    texts = table.groupby("exact").equal.agg(["size", "sum"])
    said = " ".join(
        f"**With `exact`, {own} of {all_} texts of up to {n_tokens} tokens are the model's own.**"
        if exact
        else f"Without it {all_ - own} of {all_} part from it somewhere."
        for exact, all_, own in texts.sort_index(ascending=False).itertuples()
    )
    name = "lossless_offline_bfloat16_figure"
    plotting.save_figure(figure, PROJECT / "docs" / "results", name, pd.DataFrame(plotted), said)
