"""Exit heads: kinds, training, saving and sharing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["exit_heads", "kinds", "loss", "lessons", "training", "report", "recipe", "hub"],
    submod_attrs={
        "exit_heads": ["ExitHeads", "HeadConfig"],
        "loss": ["DistillationLoss"],
        "training": ["TrainConfig", "train_heads", "evaluate_heads"],
        "report": ["smooth_report"],
        "recipe": ["MadeHeads", "Recipe", "make_heads", "small_recipe"],
    },
)
