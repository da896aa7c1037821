"""The tokenizer in a GGUF file: `tokenizer.ggml.*` from tokenizer.model and tokenizer_config.json, and back.

llama.cpp merges SentencePiece's pieces by score, so the scores must be tokenizer.model's: published MiniCPM files whose
scores are all -1000 split texts otherwise than the model learned. A byte-level vocabulary (`gpt2`) has merges and the
name of its expressions in their place. Knows pieces, scores, types and merges; how a text is split is
minicpm.tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minicpm.chat import CURRENT_TEMPLATE, ChatTemplate, template_for, template_from
from minicpm.errors import FormatError, ModelError, brief
from minicpm.files import file_in, has_entry, json_text
from minicpm.formats.gguf import Array, Field, Value, ValueType
from minicpm.tokenizer import (
    PRE_TOKENIZERS,
    ByteLevelVocabulary,
    PieceType,
    SentencePieceModel,
    Tokenizer,
    adds_bos,
    prepends_blank,
    read_sentencepiece,
    read_tokenizer_config,
    special_token,
)
from minicpm.tokenizer.added_tokens import listed_tokens
from minicpm.tokenizer.loading import CONFIG_FILE, JSON_FILE

TOKENS, SCORES, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
MODEL, PRE, MERGES = "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.merges"
TEMPLATE = "tokenizer.chat_template"
SENTENCEPIECE, BYTE_LEVEL = "llama", "gpt2"
# Control tokens that end a turn or a text in every family that has them (llama.cpp's list, as far as it is the same).
END_TOKENS = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>"})
MAX_MERGES = 1 << 20
MAX_PIECE_CHARACTERS, MAX_VOCABULARY_CHARACTERS = 256, 16 << 20
# What llama.cpp's converter gives to special tokens, and to rows of the embedding beyond the vocabulary.
SPECIAL_SCORE, PADDING_SCORE = -1000.0, -10000.0
_ADVICE = "convert the model again from its folder: minicpm convert SRC DST.gguf --to gguf"


# --- writing -----------------------------------------------------------------------------------------------------


@dataclass
class _Pieces:
    texts: list[str]
    scores: list[float]
    types: list[PieceType]

    def put(self, token_id: int, text: str, score: float, kind: PieceType) -> None:
        """Replace a piece, or append one; padding fills a gap."""
        while len(self.texts) <= token_id:
            self.texts.append(_padding(len(self.texts)))
            self.scores.append(PADDING_SCORE)
            self.types.append(PieceType.UNUSED)
        self.texts[token_id], self.scores[token_id], self.types[token_id] = text, score, kind


def tokenizer_fields(folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> list[Field]:
    """The metadata of a model folder's tokenizer and chat template, as llama.cpp's converter writes them.

    A byte-level tokenizer.json is written with its merges, a SentencePiece tokenizer.model with its scores. Added to it
    is add_space_prefix, whose default is MiniCPM-2B's but not every model's. Raises ModelError where GGUF has no room
    for what the folder says.
    """
    config = read_tokenizer_config(folder)
    merges: tuple[tuple[str, str], ...]
    unknown: int | None
    if has_entry(folder, "tokenizer.model"):
        model = read_sentencepiece(file_in(folder, "tokenizer.model"))
        kind, pre, merges, unknown = SENTENCEPIECE, "default", (), model.unk_id
        has_prefix = prepends_blank(config, folder)
        listed = listed_tokens(folder, config, set(model.pieces).__contains__)
        config["added_tokens_decoder"] = {**(config.get("added_tokens_decoder") or {}), **listed}
        pieces = _pieces(model, config, has_prefix)
    else:
        found = _byte_level_vocabulary(folder)
        kind, pre, merges, has_prefix = BYTE_LEVEL, found.pre, found.merges, False
        pieces = _Pieces(list(found.pieces), [0.0] * len(found.pieces), list(found.types))
        unknown = _token_id(pieces, special_token(config, "unk_token"))
    if len(pieces.texts) > vocab_size:
        raise ModelError(f"{folder}: its tokenizer has {len(pieces.texts)} pieces, the model {vocab_size}")
    if len(pieces.texts) < vocab_size:
        pieces.put(vocab_size - 1, _padding(vocab_size - 1), PADDING_SCORE, PieceType.UNUSED)
    scores = Field(SCORES, ValueType.ARRAY, pieces.scores, ValueType.FLOAT32)
    types = Field(TYPES, ValueType.ARRAY, pieces.types, ValueType.INT32)
    ranks = Field(MERGES, ValueType.ARRAY, [" ".join(merge) for merge in merges], ValueType.STRING)
    bos, eos = (_token_id(pieces, special_token(config, key)) for key in ("bos_token", "eos_token"))
    others = [token_id for token_id in eos_token_ids if token_id != eos]
    if any(not _ends_by_name(pieces, token_id) for token_id in others[1:]) or (others and eos is None):
        raise ModelError(f"{folder}: the ids {list(eos_token_ids)} end a text; GGUF has room for eos and one more")
    ids = {"bos": bos, "eos": eos, "eot": next(iter(others), None), "unknown": unknown}
    return [
        Field(MODEL, ValueType.STRING, kind),
        Field(PRE, ValueType.STRING, pre),
        Field(TOKENS, ValueType.ARRAY, pieces.texts, ValueType.STRING),
        *((scores, types) if kind == SENTENCEPIECE else (types, ranks)),
        *(Field(f"tokenizer.ggml.{n}_token_id", ValueType.UINT32, i) for n, i in ids.items() if i is not None),
        Field("tokenizer.ggml.add_bos_token", ValueType.BOOL, adds_bos(config, folder)),
        Field("tokenizer.ggml.add_sep_token", ValueType.BOOL, False),
        Field("tokenizer.ggml.add_eos_token", ValueType.BOOL, False),
        Field("tokenizer.ggml.add_space_prefix", ValueType.BOOL, has_prefix),
        Field(TEMPLATE, ValueType.STRING, template_for(folder).text),
    ]


def _pieces(model: SentencePieceModel, config: dict[str, Any], is_blank_prepended: bool) -> _Pieces:
    types = list(model.types)
    if is_blank_prepended:
        # llama.cpp finds the user's pieces first and puts another blank behind each; 2024's tokenizer.json merges them
        # like all others, and so does llama.cpp when they are normal ones. Its own converter writes them so.
        types = [PieceType.NORMAL if kind == PieceType.USER_DEFINED else kind for kind in types]
    pieces = _Pieces(list(model.pieces), list(model.scores), types)
    for key, token in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        kind = PieceType.CONTROL if token.get("special") else PieceType.USER_DEFINED
        pieces.put(int(key), token["content"], SPECIAL_SCORE, kind)
    return pieces


def _byte_level_vocabulary(folder: Path) -> ByteLevelVocabulary:
    """The vocabulary of a folder whose tokenizer.json is byte-level."""
    tokenizer = Tokenizer.from_folder(folder) if has_entry(folder, "tokenizer.json") else None
    found = None if tokenizer is None else tokenizer.byte_level_vocabulary()
    if found is None:
        raise ModelError(f"{folder}: no tokenizer.model; GGUF carries its scores, so put the model's own file there")
    return found


def _ends_by_name(pieces: _Pieces, token_id: int) -> bool:
    """Whether readers take a token for an end without a key that names it."""
    is_control = token_id < len(pieces.types) and pieces.types[token_id] == PieceType.CONTROL
    return is_control and pieces.texts[token_id] in END_TOKENS


def _token_id(pieces: _Pieces, text: object) -> int | None:
    return pieces.texts.index(text) if isinstance(text, str) and text in pieces.texts else None


def _padding(token_id: int) -> str:
    return f"[PAD{token_id}]"


# --- reading -----------------------------------------------------------------------------------------------------


def read_tokenizer(path: Path, metadata: dict[str, Value]) -> Tokenizer:
    """The tokenizer of a GGUF file; FormatError where its metadata give none that splits texts as the model learned."""
    kind = metadata.get(MODEL)
    if kind == BYTE_LEVEL:
        vocabulary, config = read_byte_level_metadata(path, metadata)
        return Tokenizer.from_byte_level(vocabulary, config, path)
    if kind != SENTENCEPIECE:
        raise FormatError(
            path, f"{MODEL} is {brief(kind)}, expected 'llama' (SentencePiece) or 'gpt2' (byte-level BPE)"
        )
    model, config = read_sentencepiece_metadata(path, metadata)
    return Tokenizer.from_sentencepiece(model, config, path)


def is_byte_level(metadata: dict[str, Value]) -> bool:
    return metadata.get(MODEL) == BYTE_LEVEL


def _read_metadata(path: Path, metadata: dict[str, Value]) -> tuple[Any, dict[str, Any]]:
    return (read_byte_level_metadata if is_byte_level(metadata) else read_sentencepiece_metadata)(path, metadata)


def tokenizer_texts(path: Path, metadata: dict[str, Value]) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json of a folder with the tokenizer and chat template of a GGUF file."""
    _, config = _read_metadata(path, metadata)
    config["tokenizer_class"] = "PreTrainedTokenizerFast" if is_byte_level(metadata) else "LlamaTokenizer"
    config["clean_up_tokenization_spaces"] = False
    if TEMPLATE in metadata:
        config["chat_template"] = read_template(path, metadata).text
    return {JSON_FILE: read_tokenizer(path, metadata).to_json(), CONFIG_FILE: json_text(config)}


def read_template(path: Path, metadata: dict[str, Value]) -> ChatTemplate:
    """The chat template of a GGUF file, MiniCPM's own where it has none."""
    text = metadata.get(TEMPLATE)
    if text is None:
        return CURRENT_TEMPLATE
    if not isinstance(text, str):
        raise FormatError(path, f"{TEMPLATE} must be a text, got {brief(text)}")
    _, config = _read_metadata(path, metadata)
    return template_from(text, path, config)


def read_sentencepiece_metadata(path: Path, metadata: dict[str, Value]) -> tuple[SentencePieceModel, dict[str, Any]]:
    """The pieces of a GGUF file, and its metadata under the keys of tokenizer_config.json."""
    pieces = _read_pieces(path, metadata, has_scores=True)
    count = len(pieces.texts)
    ids = {name: _read_id(path, metadata, f"tokenizer.ggml.{name}_token_id", count) for name in ("bos", "eos")}
    unknown = _read_id(path, metadata, "tokenizer.ggml.unknown_token_id", count)
    if unknown is None:
        unknown = next((i for i, kind in enumerate(pieces.types) if kind == PieceType.UNKNOWN), 0)
    prefix, bos = (_read_flag(path, metadata, f"tokenizer.ggml.add_{n}", True) for n in ("space_prefix", "bos_token"))
    config = {**_special_tokens(pieces, ids), "add_bos_token": bos, "add_prefix_space": prefix}
    model = SentencePieceModel(
        pieces=tuple(pieces.texts),
        scores=tuple(pieces.scores),
        types=tuple(pieces.types),
        byte_fallback=pieces.types.count(PieceType.BYTE) == 256,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=_read_flag(path, metadata, "tokenizer.ggml.remove_extra_whitespaces", False),
        unk_id=unknown,
        bos_id=-1 if ids["bos"] is None else ids["bos"],
        eos_id=-1 if ids["eos"] is None else ids["eos"],
        pad_id=-1,
    )
    return model, config


def read_byte_level_metadata(path: Path, metadata: dict[str, Value]) -> tuple[ByteLevelVocabulary, dict[str, Any]]:
    """The same of a file with merges in place of scores. Without a `pre`, 'default' is meant, as in llama.cpp."""
    pre = metadata.get(PRE, "default")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise FormatError(path, f"{PRE} is {brief(pre)}, a way to split texts that is unknown here; known are {known}")
    pieces = _read_pieces(path, metadata, has_scores=False)
    if "▁" in pieces.texts and "<0x0A>" in pieces.texts:
        raise FormatError(
            path,
            f"{MODEL} is 'gpt2', but its pieces are SentencePiece's, expected 'llama'; repair it with minicpm doctor "
            "FILE --fix OUT.gguf, or convert the model again from its folder",
        )
    count = len(pieces.texts)
    ids = {name: _read_id(path, metadata, f"tokenizer.ggml.{name}_token_id", count) for name in ("bos", "eos")}
    adds_bos = _read_flag(path, metadata, "tokenizer.ggml.add_bos_token", PRE_TOKENIZERS[pre].adds_bos)
    config = {**_special_tokens(pieces, ids), "add_bos_token": adds_bos}
    # As in llama.cpp, an end of a turn is a control token regardless of its type in the file, which may be wrong.
    types = (PieceType.CONTROL if text in END_TOKENS else kind for text, kind in zip(pieces.texts, pieces.types))
    return ByteLevelVocabulary(tuple(pieces.texts), tuple(types), _read_merges(path, metadata), pre), config


def _special_tokens(pieces: _Pieces, ids: dict[str, int | None]) -> dict[str, Any]:
    return {f"{name}_token": None if i is None else pieces.texts[i] for name, i in ids.items()}


def _read_merges(path: Path, metadata: dict[str, Value]) -> tuple[tuple[str, str], ...]:
    texts = _items(metadata.get(MERGES))
    if not isinstance(texts, list) or len(texts) > MAX_MERGES:
        problem = f"{MERGES} must be an array of at most {MAX_MERGES:,} texts, which {MODEL} 'gpt2' needs"
        raise FormatError(path, problem)
    merges = tuple(tuple(text.split(" ")) for text in texts)
    wrong = next((text for text, merge in zip(texts, merges) if len(merge) != 2 or "" in merge), None)
    if wrong is not None:
        raise FormatError(path, f"{MERGES} holds {brief(wrong)}, expected two pieces with a blank between them")
    return merges  # type: ignore[return-value]


def read_eos_token_ids(path: Path, metadata: dict[str, Value], vocab_size: int) -> tuple[int, ...]:
    """Ids that end a text: eos, the end of a turn and of a message, and tokens with the name of an end token.

    A file has room for one id of each, but models may end their turns by another token than their texts. Of a
    SentencePiece vocabulary only control tokens are ends by name.
    """
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    ids = [_read_id(path, metadata, key, vocab_size) for key in keys]
    texts, types = _items(metadata.get(TOKENS)), _items(metadata.get(TYPES))
    if isinstance(texts, list) and isinstance(types, np.ndarray):
        is_any = metadata.get(MODEL) == BYTE_LEVEL
        named = (i for i, text in enumerate(texts[:vocab_size]) if text in END_TOKENS)
        ids += [i for i in named if is_any or (i < len(types) and types[i] == PieceType.CONTROL)]
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _read_pieces(path: Path, metadata: dict[str, Value], *, has_scores: bool) -> _Pieces:
    texts, scores, types = (_items(metadata.get(key)) for key in (TOKENS, SCORES, TYPES))
    if not isinstance(texts, list) or not texts:
        raise FormatError(path, f"{TOKENS} must be an array of texts; the file has no tokenizer")
    if not has_scores:
        scores = np.zeros(len(texts), np.float32)
    if not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or len(scores) != len(texts):
        raise FormatError(path, f"{SCORES} must be {len(texts)} numbers, one for each token; {_ADVICE}")
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(texts):
        raise FormatError(path, f"{TYPES} must be {len(texts)} whole numbers, one for each token")
    if not np.isfinite(scores).all():
        raise FormatError(path, f"{SCORES} has one that is no number")
    if not np.isin(types, list(PieceType)).all():
        raise FormatError(path, f"{TYPES} has one that is no type of a piece; there are 1 to 6")
    count = len(texts)
    while count and types[count - 1] == PieceType.UNUSED and texts[count - 1] == _padding(count - 1):
        count -= 1
    pieces = _Pieces(texts[:count], scores[:count].tolist(), [PieceType(kind) for kind in types[:count].tolist()])
    _check_pieces(path, pieces)
    if has_scores:
        _check_scores(path, pieces)
    return pieces


def _items(value: Value | None) -> list[str] | npt.NDArray[np.generic] | None:
    return value.items if isinstance(value, Array) else None


def _check_pieces(path: Path, pieces: _Pieces) -> None:
    longest = max(map(len, pieces.texts), default=0)
    if not 0 < longest <= MAX_PIECE_CHARACTERS or "" in pieces.texts:
        raise FormatError(path, f"{TOKENS} must be texts of 1 to {MAX_PIECE_CHARACTERS} characters")
    if sum(map(len, pieces.texts)) > MAX_VOCABULARY_CHARACTERS:
        raise FormatError(path, f"{TOKENS} have more than {MAX_VOCABULARY_CHARACTERS:,} characters")
    if len(set(pieces.texts)) != len(pieces.texts):
        raise FormatError(path, f"{TOKENS} names a piece twice")


def _check_scores(path: Path, pieces: _Pieces) -> None:
    normal = [score for score, kind in zip(pieces.scores, pieces.types) if kind == PieceType.NORMAL]
    if len(normal) > 1 and min(normal) == max(normal):
        raise FormatError(
            path,
            f"all scores of its tokenizer are {normal[0]:g}, so texts would be split otherwise than the model learned "
            "(files of 2024 made from tokenizer.json have this fault); repair it with minicpm doctor FILE --fix "
            "OUT.gguf, or convert the model again from its folder",
        )


def _read_id(path: Path, metadata: dict[str, Value], key: str, count: int) -> int | None:
    value = metadata.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise FormatError(path, f"{key} is {brief(value)}, expected a token id below {count}")
    return value


def _read_flag(path: Path, metadata: dict[str, Value], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(path, f"{key} must be true or false, got {brief(value)}")
    return value
