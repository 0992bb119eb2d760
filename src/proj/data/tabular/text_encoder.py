"""Pretrained encoders of texts as vectors, and scores of text columns that are made from them."""

import hashlib
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from proj.errors import UserError
from proj.schema import Array, Column

OPTION: Final = "data.text_encoder"
# What a score by an encoder has in place of the terms of TF-IDF begins with this.
MARK: Final = '{"encoder": '


class TextEncoder(ABC):
    """An encoder of texts as vectors, such as a pretrained net. Training does not change it.

    Subclass it for an encoder of your own. As in scikit-learn, each argument of ``__init__`` is a
    plain value and is kept in an attribute of its name. Load weights in ``encode``, because rows
    that are already prepared need none.
    """

    @abstractmethod
    def encode(self, texts: list[str]) -> Any:
        """Return the vectors of texts, finite numbers [texts, dimensions].

        A missing text is an empty one. The vector of a text must not depend on the other texts.
        """

    def files(self) -> list[Path]:
        """Return the files that the vectors depend on.

        By default they are those of the attribute ``path``, a file or a folder. Their content
        counts in ``identity``, and ``path`` itself does not.
        """
        path = getattr(self, "path", None)
        return _files_in(Path(path).expanduser()) if path else []

    @cached_property
    def identity(self) -> str:
        """A hash of the class, its arguments and the content of its files.

        A run keeps it, so that its rows are encoded by the same encoder later.

        Raises:
            UserError: if a file or an attribute is missing.
        """
        names = list(inspect.signature(type(self)).parameters)
        if missing := [name for name in names if not hasattr(self, name)]:
            raise UserError(
                f"{OPTION}: expected the argument {missing[0]} in an attribute of its name, got "
                f"none; set self.{missing[0]} in {type(self).__name__}.__init__."
            )
        values = {name: getattr(self, name) for name in names if name != "path"}
        content: list[str] = []
        if getattr(self, "path", None) or type(self).files is not TextEncoder.files:
            files = self.files()
            if not files:
                raise UserError(
                    f"{OPTION}: expected a file or folder with the weights of "
                    f"{type(self).__name__}, got {getattr(self, 'path', 'none')}, which is not "
                    "there or empty; correct the path."
                )
            content = sorted(map(_sha256, files))
        try:
            described = json.dumps([type(self).__qualname__, values, content], sort_keys=True)
        except TypeError as error:
            raise UserError(
                f"{OPTION}: expected texts, numbers, lists and dicts as the arguments of "
                f"{type(self).__name__}, got another value ({error}); load it in `encode`."
            ) from error
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    @property
    def cache_key(self) -> list[str]:
        """The identity and a hash of the module with the class, for the cache of prepared rows."""
        file = getattr(sys.modules[type(self).__module__], "__file__", None)
        return [self.identity, _sha256(Path(file)) if file else ""]


class Model2Vec(TextEncoder):
    """Static embeddings by the package model2vec: a text has the mean vector of its tokens.

    Nothing is downloaded, and the weights are read from safetensors, which hold no code. A text is
    cut at the ``max_length`` of the model, 512 tokens by default.

    Args:
        path: folder that ``StaticModel.save_pretrained`` has written, or the name of a model that
            ``hf download`` has fetched.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._model: Any = None

    def encode(self, texts: list[str]) -> Array:
        if self._model is None:
            try:
                # An optional package, which only these encoders need.
                from model2vec import StaticModel
            except ImportError as error:
                raise UserError(
                    f"{OPTION}: Model2Vec needs the package model2vec, got none ({error}); install "
                    "the extra text: pip install '.[text]'."
                ) from error
            try:
                self._model = StaticModel.from_pretrained(self._folder())
            except Exception as error:  # tokenizers and safetensors have errors of many types.
                raise UserError(
                    f"{OPTION}: expected the folder of a model of model2vec, with config.json, "
                    f"model.safetensors and tokenizer.json, got {self.path} "
                    f"({' '.join(str(error).split())[:200]})."
                ) from error
        # Several processes would change an environment variable.
        vectors: Array = self._model.encode(texts, use_multiprocessing=False)
        return vectors

    def files(self) -> list[Path]:
        # Other files, such as a model card, change no vector.
        return [f for f in _files_in(self._folder()) if f.suffix in (".json", ".safetensors")]

    def _folder(self) -> Path:
        """Return the folder of the model, in the cache of the hub if ``path`` is no folder."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            return folder
        try:
            # It takes a while, and a folder does not need it.
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(self.path, local_files_only=True))
        # It has errors of many types for names that are none, or that it has not fetched.
        except Exception as error:
            raise UserError(
                f"{OPTION}: expected a folder, or a model that `hf download` has fetched, got "
                f"{self.path}; correct the path, or fetch the model."
            ) from error


def _files_in(path: Path) -> list[Path]:
    """Return a file, or the files of a folder and its subfolders without hidden ones."""
    if path.is_file():
        return [path]
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embed(encoder: TextEncoder, texts: list[str]) -> Array:
    """Return the vectors of texts [texts, dimensions], float64. Raises UserError for others."""
    vectors = np.asarray(encoder.encode(texts))
    shape = vectors.shape
    if len(shape) != 2 or shape[0] != len(texts) or vectors.dtype.kind not in "fiu":
        raise UserError(
            f"{OPTION}: expected numbers of shape ({len(texts)}, dimensions) from "
            f"{type(encoder).__name__}.encode, got {vectors.dtype} of shape {shape}; correct it."
        )
    vectors = vectors.astype(np.float64)
    if not np.isfinite(vectors).all():
        text = texts[int(np.argmin(np.isfinite(vectors).all(axis=1)))]
        raise UserError(
            f"{OPTION}: expected finite numbers from {type(encoder).__name__}.encode, got others "
            f"for the text {text[:60]!r}; correct it."
        )
    return vectors


def describe_encoder(encoder: TextEncoder, rows: str) -> str:
    """Return what a score by an encoder has in place of terms, as JSON.

    ``rows`` is a hash of the rows that the score is fitted on.
    """
    return json.dumps({"encoder": encoder.identity, "rows": rows})


def is_encoded(column: Column) -> bool:
    """Return whether a column is a score of the vectors of an encoder."""
    return column.kind == "score" and column.categories[1].startswith(MARK)


def fill_scores(
    frame: pl.DataFrame, columns: Sequence[Column], encoder: TextEncoder | None
) -> pl.DataFrame:
    """Return encoded rows with scores in place of the texts that an encoder has to encode.

    It is not a part of a query, so that a text is encoded once for all of its scores.

    Args:
        frame: values of the columns, each named by its position.
        columns: the columns of the frame, in their order.
        encoder: the encoder of the scores that are made by one.

    Raises:
        UserError: if there is a score by another encoder than this one.
    """
    places: dict[str, list[int]] = {}
    for place, column in enumerate(columns):
        if is_encoded(column):
            places.setdefault(column.source, []).append(place)
            _check_encoder(column, encoder)
    scores = []
    for same_source in places.values():
        assert encoder is not None
        texts = frame[str(same_source[0])].to_list()
        weights = np.array([json.loads(columns[i].categories[2]) for i in same_source])
        # An encoder may not take an empty list.
        vectors = embed(encoder, texts) if texts else np.zeros((0, weights.shape[1] - 1))
        values = (vectors @ weights[:, :-1].T + weights[:, -1]).astype(np.float32)
        scores += [pl.Series(str(place), values[:, i]) for i, place in enumerate(same_source)]
    return frame.with_columns(scores)


def _check_encoder(column: Column, encoder: TextEncoder | None) -> None:
    known = json.loads(column.categories[1])["encoder"]
    if encoder is None or encoder.identity != known:
        got = "none" if encoder is None else f"{type(encoder).__name__} with other files or options"
        raise UserError(
            f"{OPTION}: expected the encoder that {column.name} was trained with, got {got}; give "
            "its class, options and files as in training."
        )
