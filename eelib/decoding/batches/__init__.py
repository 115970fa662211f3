"""Many texts at once, each as it would be alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["steps", "ragged", "gathering", "scheduler", "output", "prompts", "batcher"],
    submod_attrs={
        "batcher": ["Batcher", "Finished"],
        "gathering": ["All", "DREX", "Each", "Gathering", "Wait"],
        "output": ["BatchOutput", "BatchStats"],
        "steps": ["stepwise"],
    },
)
