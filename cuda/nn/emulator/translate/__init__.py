"""PTX -> C++.  `translate(text)` gives the C++ of a module; instructions/ has the table of what each
instruction becomes."""

from cuda.nn.emulator.translate.module import Translation, TranslationError, translate

__all__ = ["translate", "Translation", "TranslationError"]
