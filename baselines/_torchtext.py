"""A stand-in for the vocabulary of torchtext, which scGPT imports and which no longer loads.

torchtext ended in April 2024: its compiled part does not fit today's PyTorch. Of all of it scGPT uses one
class and one function, two-way lookup between tokens and numbers, which are written here in plain Python.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType


class Vocab:
    """Tokens and their numbers 0, 1, 2, ...

    Parameters
    ----------
    vocab
        Another vocabulary to copy, or tokens in the order of their numbers.

    Raises
    ------
    RuntimeError
        If a token stands twice.
    """

    def __init__(self, vocab: Vocab | Sequence[str] = ()) -> None:
        self._tokens: list[str] = []
        self._numbers: dict[str, int] = {}
        self._default: int | None = None
        for token in vocab.get_itos() if isinstance(vocab, Vocab) else vocab:
            self.append_token(token)
        if isinstance(vocab, Vocab):
            self._default = vocab.get_default_index()

    @property
    def vocab(self) -> Vocab:
        """Itself: in torchtext the compiled vocabulary within, from which scGPT makes its own."""
        return self

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, token: str) -> bool:
        return token in self._numbers

    def __getitem__(self, token: str) -> int:
        """Return the number of a token, or the default where it is unknown.

        Raises
        ------
        RuntimeError
            If it is unknown and there is no default.
        """
        number = self._numbers.get(token, self._default)
        if number is None:
            raise RuntimeError(f"token {token!r} is not in the vocabulary, and it has no default index")
        return number

    def __call__(self, tokens: Sequence[str]) -> list[int]:
        return self.lookup_indices(tokens)

    def lookup_indices(self, tokens: Sequence[str]) -> list[int]:
        """Return the numbers of tokens."""
        return [self[token] for token in tokens]

    def lookup_token(self, index: int) -> str:
        """Return the token of a number; RuntimeError if there is none."""
        if not 0 <= index < len(self):
            raise RuntimeError(f"index {index} is not one of the {len(self)} of the vocabulary")
        return self._tokens[index]

    def lookup_tokens(self, indices: Sequence[int]) -> list[str]:
        """Return the tokens of numbers."""
        return [self.lookup_token(index) for index in indices]

    def append_token(self, token: str) -> None:
        """Add a token behind the last; RuntimeError if it is there already."""
        self.insert_token(token, len(self))

    def insert_token(self, token: str, index: int) -> None:
        """Add a token at a number; those behind it move by one.

        Raises
        ------
        RuntimeError
            If the token is there already, or the number would leave a gap.
        """
        if token in self._numbers:
            raise RuntimeError(f"token {token!r} stands twice, first as number {self._numbers[token]}")
        if not 0 <= index <= len(self):
            raise RuntimeError(f"token {token!r} cannot be number {index}: {len(self)} is the next")
        self._tokens.insert(index, token)
        # From the end, as when a file is read, this is one step, so that 60,000 genes load at once.
        for number in range(index, len(self._tokens)):
            self._numbers[self._tokens[number]] = number

    def set_default_index(self, index: int | None) -> None:
        """Set the number that stands for every unknown token; None: there is none."""
        self._default = index

    def get_default_index(self) -> int | None:
        """Return the number that stands for every unknown token."""
        return self._default

    def get_stoi(self) -> dict[str, int]:
        """Return a copy of token -> number."""
        return dict(self._numbers)

    def get_itos(self) -> list[str]:
        """Return a copy of the tokens in order."""
        return list(self._tokens)


def vocab(
    ordered_dict: Mapping[str, int],
    min_freq: int = 1,
    specials: Sequence[str] | None = None,
    special_first: bool = True,
) -> Vocab:
    """Return the vocabulary of the tokens that occur often enough, in the order of the mapping.

    Parameters
    ----------
    ordered_dict
        Token -> how often it occurs.
    min_freq
        The least number of occurrences.
    specials
        Tokens that are added whatever their number; those of them in the mapping stand only once.
    special_first
        Whether they stand before the others or behind them.
    """
    specials = list(specials or [])
    tokens = [token for token, n in ordered_dict.items() if n >= min_freq and token not in set(specials)]
    return Vocab(specials + tokens if special_first else tokens + specials)


def register() -> bool:
    """Let ``import torchtext.vocab`` find this module where the real one does not load.

    Returns
    -------
    bool
        Whether the stand-in is in use.
    """
    try:
        import torchtext.vocab as found
    except (ImportError, OSError):  # OSError: installed, but its library does not load
        package = ModuleType("torchtext")
        package.vocab = found = sys.modules[__name__]  # type: ignore[attr-defined]
        sys.modules |= {"torchtext": package, "torchtext.vocab": found}
    return found is sys.modules[__name__]
