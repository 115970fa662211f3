"""Files: where artefacts lie, how they are written, read and traced."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["layout", "writing", "ledger", "artefacts"],
    submod_attrs={
        "layout": ["Workspace", "expanded", "home"],
        "writing": ["atomic_write", "staged", "write_whole"],
        "ledger": ["Provenance", "note_input", "provenance", "recorded", "renew_record"],
        "artefacts": [
            "read_json", "read_lines", "read_note", "read_table", "read_tensors", "read_yaml", "write_json",
            "write_note", "write_table", "write_tensors",
        ],
    },
)  # fmt: skip
