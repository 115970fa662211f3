"""Text for training, calibration and testing: self-generated, from files, or streamed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["chat", "code", "reading", "generation", "prompts", "documents", "corpus"],
    submod_attrs={
        "chat": ["answers", "as_prompt"],
        "reading": ["read_documents"],
        "generation": ["generate_texts"],
        "documents": ["CorpusConfig", "read_tokenized"],
        "corpus": ["Corpus", "load_corpus"],
    },
)
