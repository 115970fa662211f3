"""The frozen model: load it, find its parts, run segments of blocks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "loading", "probing", "segments", "lengths", "fingerprints", "tokens", "kv_cache", "products", "packing",
        "graphs", "int8", "teacher",
    ],
    submod_attrs={
        "loading": ["load_model"],
        "segments": ["Backbone"],
        "kv_cache": ["KVCache"],
        "packing": ["packed", "unpack"],
        "graphs": ["Graphs"],
        "int8": ["with_int8"],
        "teacher": ["TeacherOutputs", "Teacher"],
    },
)  # fmt: skip
