"""What the README of saved heads says of them."""

import json


def model_card(described: dict) -> str:
    """Markdown, from what `ExitHeads.save_pretrained` writes into config.json."""
    heads, training = described["heads"], described["training"]
    rows = "".join(
        f"| {row['depth']} | {row['agreement']:.3f} | {row['loss']:.3f} |\n" for row in training.get("validation", [])
    )
    return (
        f"# Early-exit heads for {described['backbone']}\n\n"
        f"Kind `{heads['kind']}`, after {', '.join(map(str, heads['depths']))} of {described['n_blocks']} blocks; "
        f"draft vocabulary: {heads['draft_vocab_size'] or 'the whole vocabulary'}. "
        f"Backbone fingerprint `{described['fingerprint'][:12]}`; eelib {described['eelib_version']}.\n\n"
        + (f"| depth | agreement, held-out text | KL [nats] |\n|---|---|---|\n{rows}\n" if rows else "")
        + f"Training: `{json.dumps({k: v for k, v in training.items() if k != 'validation'})}`\n\n"
        '```python\nheads = eelib.ExitHeads.from_pretrained("this folder", model)\n```\n'
    )
