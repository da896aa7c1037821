"""Opening tokenizer files: what is let through, and how the pipeline is rebuilt where only tokenizer.model exists.

Everything is checked before the `tokenizers` library sees it: a damaged or hostile file costs a sentence, not a crash.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minicpm.errors import FormatError, brief, one_line
from minicpm.files import file_in, has_entry, parse_json_object, read_bytes, read_json_object
from minicpm.tokenizer import byte_level
from minicpm.tokenizer.added_tokens import ADDED_TOKENS_FILE, listed_tokens
from minicpm.tokenizer.sentencepiece import (
    MAX_PIECE_CHARACTERS,
    PieceType,
    SentencePieceModel,
    bpe_merges,
    read_sentencepiece,
)
from minicpm.tokenizer.spelling import SPACE_MARK, ByteLevelSpelling, SentencePieceSpelling, Spelling

JSON_FILE, SENTENCEPIECE_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
# The real file has 6,202,715 bytes, 122,753 pieces and 171,540 merges; these are room for bigger kin, not for bombs.
MAX_FILE_BYTES = 32 << 20
MAX_VOCAB_SIZE = 1 << 19
MAX_MERGES = 1 << 20
MAX_ADDED_TOKENS = 1 << 14
MAX_CONFIG_BYTES = 4 << 20

# LlamaTokenizer's, which every 2024 configuration names.
DEFAULT_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def load_library_tokenizer(folder: Path, config: dict[str, Any]) -> tuple[Any, Path]:
    """The `tokenizers.Tokenizer` of a folder and the file it came from. Raises FormatError naming the file."""
    if has_entry(folder, JSON_FILE):
        source = file_in(folder, JSON_FILE)
        library_tokenizer = _load_json(source)
    elif has_entry(folder, SENTENCEPIECE_FILE):
        source = file_in(folder, SENTENCEPIECE_FILE)
        library_tokenizer = build_from_sentencepiece(read_sentencepiece(source), prepends_blank(config, folder))
    else:
        raise FormatError(folder, "no tokenizer here; expected tokenizer.json or tokenizer.model")
    _add_configured_tokens(library_tokenizer, config, folder / CONFIG_FILE)
    listed = listed_tokens(folder, config, lambda content: library_tokenizer.token_to_id(content) is not None)
    _add_configured_tokens(library_tokenizer, {"added_tokens_decoder": listed}, folder / ADDED_TOKENS_FILE)
    return library_tokenizer, source


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json as a plain object, {} where there is none. Raises FormatError if it is no JSON object."""
    if not has_entry(folder, CONFIG_FILE):
        return {}
    return read_json_object(file_in(folder, CONFIG_FILE), MAX_CONFIG_BYTES)


def special_token(config: dict[str, Any], key: str) -> object:
    """What a tokenizer_config.json gives as its bos_token, eos_token and so on: a str, None, or what is no token."""
    named = config.get(key, DEFAULT_TOKENS.get(key))
    return named.get("content") if isinstance(named, dict) else named


def adds_bos(config: dict[str, Any], folder: Path) -> bool:
    """Whether `<s>` is put in front of a text. Raises FormatError if the configuration says neither yes nor no.

    A byte-level tokenizer.json decides it by its post-processor where the configuration is silent; a SentencePiece
    tokenizer has `<s>` then, as LlamaTokenizer has.
    """
    value = config.get("add_bos_token")
    if value is None:
        raw = read_json_object(file_in(folder, JSON_FILE), MAX_FILE_BYTES) if has_entry(folder, JSON_FILE) else {}
        bos = special_token(config, "bos_token")
        return byte_level.puts_bos_in_front(raw, bos) if byte_level.is_byte_level(raw) else bos is not None
    if not isinstance(value, bool):
        raise FormatError(folder / CONFIG_FILE, f"add_bos_token must be true or false, got {brief(value)}")
    return value and special_token(config, "bos_token") is not None


def prepends_blank(config: dict[str, Any], folder: Path) -> bool:
    """Whether a blank is put in front of a text. Raises FormatError if the configuration says neither yes nor no."""
    value = config.get("add_prefix_space", True)
    if value is not None and not isinstance(value, bool):
        raise FormatError(folder / CONFIG_FILE, f"add_prefix_space must be true or false, got {brief(value)}")
    return value is not False


def _load_json(path: Path) -> Any:
    data = read_bytes(path, MAX_FILE_BYTES)
    raw = parse_json_object(path, data)
    _check_pipeline(raw, path)
    import tokenizers

    try:
        library_tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:
        raise FormatError(path, f"the tokenizers library refuses it: {one_line(str(error))}") from error
    except BaseException as error:
        # A Rust panic arrives as a BaseException of a class that cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise FormatError(path, "the tokenizers library cannot read it") from error
    for token in raw.get("added_tokens") or ():
        # The library numbers added tokens itself, whatever the file says.
        found = library_tokenizer.token_to_id(token["content"])
        if token.get("id", found) != found:
            raise FormatError(
                path, f"added_tokens gives {brief(token['content'])} the id {brief(token['id'])}, expected {found}"
            )
    return library_tokenizer


def _check_pipeline(raw: dict[str, Any], path: Path) -> None:
    """Let through what a SentencePiece or byte-level BPE tokenizer consists of, and nothing that costs or changes more.

    Regular expressions are refused, but for those of known families: the library backtracks, so a file could make one
    prompt take for ever.
    """
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise FormatError(path, f"model type is {brief(kind)}, expected 'BPE'")
    _check_vocab(model.get("vocab"), model.get("merges"), path)
    if model.get("dropout"):
        raise FormatError(path, f"model.dropout is {brief(model['dropout'])}: ids would be random; expected null")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise FormatError(path, f"model.{key} is {brief(model[key])}, expected null")
    _check_added_tokens(raw.get("added_tokens"), path)
    allowed, check = _SENTENCEPIECE_STEPS, _check_step
    if byte_level.is_byte_level(raw):
        allowed, check = _BYTE_LEVEL_STEPS, byte_level.check_step
    for field, kinds in allowed.items():
        _check_parts(raw.get(field), field, kinds, check, path)


_SENTENCEPIECE_STEPS = {
    "normalizer": {"Prepend", "Replace"},
    "pre_tokenizer": {"Metaspace"},
    "post_processor": {"TemplateProcessing"},
}
_BYTE_LEVEL_STEPS = {
    "normalizer": byte_level.NORMALIZERS,
    "pre_tokenizer": byte_level.PRE_TOKENIZER_STEPS,
    "post_processor": byte_level.POST_PROCESSORS,
}


def _check_vocab(vocab: object, merges: object, path: Path) -> None:
    if not isinstance(vocab, dict) or not vocab:
        raise FormatError(path, "model.vocab is not an object of pieces")
    if len(vocab) > MAX_VOCAB_SIZE:
        raise FormatError(path, f"model.vocab has {len(vocab):,} pieces, expected at most {MAX_VOCAB_SIZE:,}")
    if not isinstance(merges, list):
        raise FormatError(path, "model.merges is not a list")
    if len(merges) > MAX_MERGES:
        raise FormatError(path, f"model.merges has {len(merges):,} entries, expected at most {MAX_MERGES:,}")
    ids = set(vocab.values()) if set(map(type, vocab.values())) == {int} else set()
    if len(ids) != len(vocab) or min(ids) != 0 or max(ids) != len(vocab) - 1:
        raise FormatError(path, "model.vocab must give every piece its own id, counted from 0")
    longest = max(map(len, vocab))
    if longest > MAX_PIECE_CHARACTERS:
        raise FormatError(
            path, f"model.vocab has a piece of {longest:,} characters, expected at most {MAX_PIECE_CHARACTERS}"
        )


def _check_added_tokens(added: object, path: Path) -> None:
    if added is None:
        return
    if not isinstance(added, list) or len(added) > MAX_ADDED_TOKENS:
        raise FormatError(path, f"added_tokens must be a list of at most {MAX_ADDED_TOKENS:,} tokens")
    for token in added:
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not 0 < len(content) <= MAX_PIECE_CHARACTERS:
            raise FormatError(path, f"added_tokens holds {brief(token)}, which is no token")


def _check_parts(
    part: object,
    field: str,
    allowed: set[str],
    check_step: Callable[[dict[str, Any], str, Path], None],
    path: Path,
) -> None:
    parts: Any = [] if part is None else [part]
    if isinstance(part, dict) and part.get("type") == "Sequence":
        parts = part.get(f"{field}s", part.get("processors", part.get("pretokenizers")))  # the library's three words
    if not isinstance(parts, list) or len(parts) > 16:
        raise FormatError(path, f"{field} is not a short list of steps")
    for step in parts:
        kind = step.get("type") if isinstance(step, dict) else step
        if not isinstance(kind, str) or kind not in allowed:
            known = ", ".join(sorted(allowed))
            raise FormatError(path, f"{field} has the step {brief(kind)}; MiniCPM's tokenizers have {known} only")
        check_step(step, field, path)


def _check_step(step: dict[str, Any], field: str, path: Path) -> None:
    """A step may rewrite a text, but neither backtrack nor make it grow: a few doublings in a row are a bomb."""
    if step["type"] == "Replace":
        pattern = step.get("pattern")
        old = pattern.get("String") if isinstance(pattern, dict) else None
        new = step.get("content")
        if not isinstance(old, str) or not old:
            raise FormatError(path, f"{field} has a regular expression; expected a plain string to replace")
        if not isinstance(new, str) or len(new) > len(old):
            raise FormatError(path, f"{field} replaces {brief(old)} by something longer")
    if step["type"] == "Prepend" and step.get("prepend") != SPACE_MARK:
        raise FormatError(path, f"{field} prepends {brief(step.get('prepend'))}, expected {SPACE_MARK!r}")


def spelling_of(library_tokenizer: Any, path: Path) -> Spelling:
    """How the pieces spell bytes; FormatError for a decoder that is neither SentencePiece's nor byte-level."""
    decoder = library_tokenizer.decoder
    raw = {} if decoder is None else json.loads(decoder.__getstate__())
    steps = raw.get("decoders", [])
    if raw.get("type") == "ByteLevel" or [step.get("type") for step in steps] == ["ByteLevel"]:
        return ByteLevelSpelling()
    expected: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if steps not in (expected, [*expected, strip]):
        kinds = [step.get("type") for step in steps] or raw.get("type")
        raise FormatError(
            path,
            f"decoder is {brief(kinds)}, expected ByteLevel, or SentencePiece's Replace, ByteFallback, Fuse and Strip",
        )
    return SentencePieceSpelling(strips_first_blank=len(steps) == 4)


def _add_configured_tokens(library_tokenizer: Any, config: dict[str, Any], path: Path) -> None:
    """Honour tokenizer_config.json's added_tokens_decoder, which may know special tokens that the other file lacks."""
    declared = config.get("added_tokens_decoder") or {}
    if not isinstance(declared, dict) or len(declared) > MAX_ADDED_TOKENS:
        raise FormatError(path, f"added_tokens_decoder must be an object of at most {MAX_ADDED_TOKENS:,} tokens")
    for key in declared:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise FormatError(path, f"added_tokens_decoder has the key {brief(key)}, expected a token id")
    _check_added_tokens(list(declared.values()), path)
    from tokenizers import AddedToken

    known = library_tokenizer.get_added_tokens_decoder()
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    for token_id, raw in sorted((int(key), value) for key, value in declared.items()):
        content = raw["content"]
        if token_id in known and known[token_id].content == content:
            continue
        token = AddedToken(content, special=bool(raw.get("special")), **{f: bool(raw.get(f)) for f in flags})
        add = library_tokenizer.add_special_tokens if token.special else library_tokenizer.add_tokens
        add([token])
        if library_tokenizer.token_to_id(content) != token_id:
            raise FormatError(
                path,
                f"gives {brief(content)} the id {token_id}, but the vocabulary gives it "
                f"{library_tokenizer.token_to_id(content)}",
            )


def build_from_sentencepiece(model: SentencePieceModel, prepends_blank: bool) -> Any:
    """The pipeline of the official tokenizer.json, from tokenizer.model alone; a test proves the two equal.

    The blank in front of every text is the configuration's to decide, whatever the model's add_dummy_prefix says: so do
    all 2024 callers. They also build the pieces that the user defined by merges, like any other; a model without that
    blank has them found first, as SentencePiece does.
    """
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as LibraryTokenizer

    pieces = model.pieces
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = LibraryTokenizer(
        models.BPE(
            vocab,
            bpe_merges(model),
            unk_token=pieces[model.unk_id],
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    to_marks: list[Any] = [normalizers.Replace(" ", SPACE_MARK)]
    to_text: list[Any] = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepends_blank:
        to_marks.insert(0, normalizers.Prepend(SPACE_MARK))
        to_text.append(decoders.Strip(" ", 1, 0))
    else:
        own = [piece for piece, kind in zip(pieces, model.types) if kind == PieceType.USER_DEFINED]
        tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in own])
    tokenizer.normalizer = normalizers.Sequence(to_marks)
    tokenizer.decoder = decoders.Sequence(to_text)
    special = [i for i, kind in enumerate(model.types) if kind in (PieceType.UNKNOWN, PieceType.CONTROL)]
    tokenizer.add_special_tokens([AddedToken(pieces[i], normalized=False, special=True) for i in special])
    if 0 <= model.bos_id < len(pieces):
        bos = pieces[model.bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, model.bos_id)]
        )
    return tokenizer
