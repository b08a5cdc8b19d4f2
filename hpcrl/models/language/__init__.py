"""One decoder for llama, qwen2, qwen3, mistral, gemma2 and gpt2. Importing a configuration imports no PyTorch."""

from hpcrl.models.language.architecture import Architecture, Rope
from hpcrl.models.language.model import LanguageModel
from hpcrl.models.language.tokenizer import CharacterTokenizer

__all__ = ["Architecture", "CharacterTokenizer", "LanguageModel", "Rope"]
