"""The exit explorer, in JupyterLab and as a page: what is clicked, what is seen, and what Python says."""

import json
import re

import pytest

pytestmark = pytest.mark.browser

MODEL = """
import time
import eelib
from eelib.evaluation.replay import replay_policy
from eelib.explorer import Explorer, ThresholdLadder, trace_text
from tiny import N_BLOCKS, VOCAB_SIZE, chatty, own_text, prompts, random_heads, tiny_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

# Tokens of all sorts and lengths: markup, a newline, right to left, emoji, nothing at all.
words = ["<img src=x onerror=alert(1)>", "</script>", "\\n", " שלום", " مرحبا", "🙂", " 漢字", "&amp;", ""]
words += [f" word{'s' * (i % 7)}{i}" if i % 3 else f" {i}" for i in range(VOCAB_SIZE - len(words))]
table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
table.decoder = decoders.Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=table)

model = tiny_model("llama", max_position_embeddings=2304)
heads = random_heads(model, scale=0.02)
policy = eelib.Confidence("max_prob", (0.3, 0.25, 0.2), max_draft=5, back_off=False)
texts = [own_text(model, prompt, max_new_tokens=30)[0] for prompt in prompts(6)]
ladder = ThresholdLadder.of(eelib.record_traces(model, heads, texts))

def explore(policy=policy, n=40, name=""):
    output = eelib.generate(
        model, prompts(1)[0], heads=heads, policy=policy, max_new_tokens=n, min_new_tokens=n, eos_token_id=None
    )
    traces = trace_text(model, tokenizer, output, heads)
    return Explorer(output, traces, policy=policy, ladder=ladder, name=name)
"""
SHOWN = "explorer = explore()\nexplorer"
KIND = "eelib-explorer"


@pytest.fixture
def opened(open_notebook):
    """A notebook with one explorer, and its view."""

    def make(name, *cells):
        notebook = open_notebook(name, MODEL, *(cells or [SHOWN]))
        return notebook, notebook.view(KIND)

    return make


@pytest.fixture(scope="module")
def explore():
    """`explore` of the cell above, in this process: a page needs no kernel."""
    held = {}
    exec(MODEL, held)
    return held["explore"]


@pytest.fixture
def page_of(explore, new_page, tmp_path):
    """Opens the page of n tokens, without a network; tells what was requested."""

    def make(n, **options):
        explore(n=n).to_html(tmp_path / f"{n}.html")
        page, requests = new_page(offline=True, **options), []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / f"{n}.html").as_uri())
        page.wait_for_selector(f".{KIND}[data-ready=true]")
        return page, requests

    return make


def token(view, number, side=0):
    return view.locator(".tokens").nth(side).locator(f"[data-token='{number}']")


def shown_token(view, side=0):
    return view.locator(".details").nth(side).get_attribute("data-token")


def test_hover_shows_a_token_and_a_click_locks_it(opened, shot):
    notebook, view = opened("hover.ipynb")
    for number in (3, 7):
        token(view, number).hover()
        assert shown_token(view) == str(number)
    token(view, 5).click()
    token(view, 3).hover()
    assert shown_token(view) == "5" and "locked" in view.locator(".details h3").inner_text()
    shot(view, "explorer_locked")
    token(view, 9).click(modifiers=["Control"])
    assert notebook.run("print(sorted(set(explorer.selection.token.tolist())))") == "[5, 9]\n"
    said = notebook.run("print(*explorer.selection.query('token == 9').head_text, sep='|')").strip("\n").split("|")
    assert len(said) == 4, "three heads and the full model"
    notebook.run("explorer.select(2)")
    notebook.page.wait_for_selector(f".{KIND} [data-token='2'].chosen")
    token(view, 2).focus()
    notebook.page.keyboard.press("Escape")
    assert notebook.run("print(len(explorer.selection))") == "0\n"


def test_a_long_name_ends_inside_its_chart(opened):
    _, view = opened("names.ipynb")
    token(view, 5).click()
    options = view.locator(".details .option bdi")
    names = options.all_inner_texts()
    options.nth(names.index(max(names, key=len))).click()
    chart = view.locator(".details .follow")
    said = chart.locator("text[font-weight='700']")
    assert re.fullmatch("“\u2068.{7}…\u2069”", said.text_content()), said.text_content()
    right = [box["x"] + box["width"] for box in (said.bounding_box(), chart.bounding_box())]
    assert right[0] <= right[1]


def test_every_token_is_reached_by_keys(opened):
    notebook, view = opened("keys.ipynb")
    view.locator(".tokens [tabindex='0']").first.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "Enter"):
        notebook.page.keyboard.press(key)
    assert notebook.run("print(explorer.selection.token.unique())") == "[2]\n"
    token(view, 2).focus()
    notebook.page.keyboard.press("End")
    assert shown_token(view) == "2", "the lock holds"
    assert notebook.page.evaluate("document.activeElement.dataset.token") == "39"


def test_sliders_move_numbers_to_what_python_replays(opened):
    notebook, view = opened("sliders.ipynb")
    seen = lambda name: view.locator(f".what-if td[data-result={name}]").nth(1).inner_text()  # noqa: E731
    python = """
work = replay_policy(explorer.policy, explorer.recordings[0].traces.table(), N_BLOCKS, [7],
                     [explorer.recordings[0].output.sequences[0]])
print(work.rounds, work.drafted, work.accepted)
"""
    found = set()
    view.locator("[data-setting=epsilon]").focus()
    for key in ("Home", "ArrowRight", "End"):
        notebook.page.keyboard.press(key)
        now = " ".join(seen(name) for name in ("rounds", "drafted", "accepted"))
        assert notebook.run(python).strip() == now
        found.add(now)
        view.locator("[data-setting=epsilon]").focus()
    view.locator("[data-setting=metric]").select_option("entropy")
    view.locator("[data-setting=max_draft]").fill("2")
    view.locator("[data-setting=lookup]").check()
    assert notebook.run(python).strip() == " ".join(seen(name) for name in ("rounds", "drafted", "accepted"))
    assert notebook.run("print(explorer.policy.metric, explorer.policy.max_draft)") == "entropy 2\n"
    slider = view.locator("[data-setting='thresholds.1']")
    box = slider.bounding_box()
    notebook.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    notebook.page.mouse.down()
    notebook.page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2, steps=6)
    notebook.page.mouse.up()
    now = " ".join(seen(name) for name in ("rounds", "drafted", "accepted"))
    said = (notebook.run(python).strip() for _ in range(10))  # the slider's last message may come behind a question
    assert now in said
    assert len(found) > 1, "ε changes something"


def test_a_replay_ends_where_the_run_did(opened, shot):
    notebook, view = opened("replay.ipynb", "explorer = explore(n=8)\nexplorer")
    view.get_by_role("tab", name="Replay").click()
    replay = view.locator(".replay")
    assert replay.get_attribute("data-event") == "0"
    replay.get_by_role("button", name="Play").click()
    last = replay.get_by_label("Event", exact=True).get_attribute("max")
    notebook.page.wait_for_selector(f".replay[data-event='{last}']")
    shot(view, "explorer_replay")
    said = json.loads(
        notebook.run(
            "import json\nstats = explorer.recordings[0].output.stats\n"
            "print(json.dumps([stats.emitted, stats.block_positions]))"
        )
    )
    seen = [
        int(replay.get_attribute("data-tokens")),
        [int(n) for n in replay.get_attribute("data-positions").split(",")],
    ]
    assert seen == said
    replay.get_by_role("button", name="First event").click()
    assert replay.get_attribute("data-tokens") == "1"


def test_two_runs_hover_and_scroll_together(opened, shot):
    pair = "pair = Explorer.compare(explore(name='DSSD'), explore(eelib.Never(), name='plain'))\npair"
    notebook, view = opened("pair.ipynb", pair)
    token(view, 6).hover()
    assert "hovered" in token(view, 6, side=1).get_attribute("class")
    assert [shown_token(view, side) for side in (0, 1)] == ["6", "6"]
    token(view, 4, side=1).click()
    assert notebook.run("print(pair.policy, pair.selection.token.unique())") == "Never() [4]\n"
    shot(view, "explorer_pair")
    view.get_by_role("tab", name="Heatmap").click()
    scrollers = view.locator(".heatmap .scroller")
    scrollers.nth(0).evaluate("(of) => { of.scrollLeft = 700; }")
    notebook.page.wait_for_function(
        "[...document.querySelectorAll('.heatmap .scroller')].every((of) => Math.abs(of.scrollLeft - 700) < 2)"
    )
    shot(view, "explorer_pair_heatmap")


def test_two_explorers_a_rerun_and_the_dark_theme(opened, shot, accessible):
    notebook, _ = opened("two.ipynb", SHOWN, "other = explore(eelib.FixedExit(3, 2))\nother")
    notebook.page.wait_for_function(f"document.querySelectorAll('.{KIND}[data-ready=true]').length === 2")
    views = notebook.page.locator(f".{KIND}")
    ids = views.evaluate_all("(all) => all.flatMap((view) => [...view.querySelectorAll('[id]')].map((one) => one.id))")
    assert len(set(ids)) == len(ids)
    token(views.nth(1), 2).click()
    assert notebook.run("print(len(explorer.selection), other.selection.token.unique())") == "0 [2]\n"
    notebook.rerun(1)
    notebook.page.wait_for_function(f"document.querySelectorAll('.{KIND}[data-ready=true]').length === 2")
    first = notebook.view(KIND)
    token(first, 1).click()
    assert notebook.run("print(explorer.selection.token.unique(), other.selection.token.unique())") == "[1] [2]\n"
    notebook.theme("Dark")
    notebook.page.wait_for_selector(f".{KIND}[data-theme=dark]")
    shot(notebook.view(KIND), "explorer_dark")
    accessible(notebook.page, f".{KIND}")


def test_a_saved_notebook_says_what_to_do(opened, open_notebook):
    notebook, _ = opened("saved_explorer.ipynb")
    assert not notebook.page.locator(".eelib-note").is_visible()
    notebook.save()
    notebook.command("kernelmenu:shutdown")
    again = open_notebook("saved_explorer.ipynb")
    assert "run this cell again" in again.page.locator(".jp-OutputArea .eelib-note").inner_text()


def test_the_prompt_box_runs_stops_and_says_what_is_wrong(opened, shot):
    notebook, view = opened(
        "box.ipynb",
        "explorer = Explorer.run(model, chatty(), heads, policy, 'What is 1+1?', max_new_tokens=12)\nexplorer",
    )
    box = view.locator(".box")
    said = lambda state: notebook.page.wait_for_selector(f".{KIND} .box p.{state}").inner_text()  # noqa: E731
    box.get_by_label("Prompt").fill("And 2+2?")
    box.get_by_label("Most new tokens").fill("20")
    box.get_by_role("button", name="Run").click()
    assert "by the policy" in said("done")
    n = int(notebook.run("print(explorer.recordings[0].output.stats.emitted)"))
    notebook.page.wait_for_function(f"document.querySelectorAll('.{KIND} .tokens [data-token]').length === {n}")
    box.get_by_label("Prompt").fill("  ")
    box.get_by_role("button", name="Run").click()
    assert "expected some text" in said("failed")
    notebook.run("slow = model.get_input_embeddings().register_forward_hook(lambda *a: time.sleep(0.1))")
    box.get_by_label("Prompt").fill("Go on.")
    box.get_by_label("Most new tokens").fill("200")
    box.get_by_role("button", name="Run").click()
    said("running")
    box.get_by_role("button", name="Stop").click()
    assert "Stopped after" in said("stopped")
    shot(view, "explorer_box")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_works_without_a_network(page_of, scheme, shot, accessible):
    page, requests = page_of(60, color_scheme=scheme)
    view = page.locator(f".{KIND}")
    token(view, 8).click()
    for name in ("Tokens", "Heatmap", "Replay"):
        page.get_by_role("tab", name=name).click()
        accessible(page, "body")
        shot(page, f"explorer_{name.lower()}_{scheme}")
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling"
    shot(page.locator("body"), f"explorer_narrow_{scheme}")
    assert requests == [page.url]
    assert page.locator("img").count() == 0, "markup in tokens is text"


@pytest.mark.parametrize("kind", ["SVG", "PNG"])
def test_every_view_is_saved_as_a_picture(page_of, kind):
    page, _ = page_of(30)
    for name in ("Tokens", "Heatmap", "Replay"):
        page.get_by_role("tab", name=name).click()
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        held = download.value.path().read_bytes()
        if kind == "PNG":
            assert held.startswith(b"\x89PNG") and len(held) > 2000
        else:
            assert re.match(rb"<svg [^>]*xmlns=", held) and b"</svg>" in held


def test_2000_tokens_scroll_smoothly_and_256_are_painted_soon(page_of, measured):
    """Limits are generous, for machines that are busy."""
    page, _ = page_of(2000)
    frames = page.evaluate(
        """async () => {
          const scroller = document.querySelector(".tokens .scroller");
          const step = (scroller.scrollHeight - scroller.clientHeight) / 240;
          const times = [];
          let before = await new Promise(requestAnimationFrame);
          for (let i = 0; i < 240; i++) {
            scroller.scrollTop += step;
            const now = await new Promise(requestAnimationFrame);
            times.push(now - before);
            before = now;
          }
          return times.sort((a, b) => a - b);
        }"""
    )
    drawn = page.locator(".tokens [data-token]").count()
    page, _ = page_of(256)
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    measured(f"2,000 tokens: 95% of frames under {frames[227]:.0f} ms; 256 tokens: first paint at {painted:.0f} ms")
    assert frames[227] < 150 and painted < 4000
    assert drawn < 600, "only the rows in sight are in the document"
