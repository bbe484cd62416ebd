"""What a Hugging Face folder says of its special tokens and chat template, under GGUF keys.

The vocabulary itself stays in tokenizer.json, whose absolute path is put under TOKENIZER_JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import ModelFileError
from edgelm.quant.json_file import JsonObject

TOKENIZER_JSON = "edgelm.tokenizer.json"
EOS_TOKEN_IDS = "edgelm.eos_token_ids"

_ID_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


def read_tokenizer(folder: Path, config: JsonObject) -> dict[str, Any]:
    """Special tokens, whether BOS and EOS are added, and chat templates.

    Raises:
        ModelFileError: a file is not sound JSON, or a value in it makes no sense.
    """
    tokenizer_json = folder / "tokenizer.json"
    tokenizer_config = JsonObject.read_if_there(folder / "tokenizer_config.json")
    generation = JsonObject.read_if_there(folder / "generation_config.json")
    metadata: dict[str, Any] = {}
    if tokenizer_json.exists():
        metadata[TOKENIZER_JSON] = str(tokenizer_json.absolute())
    texts = {kind: _token_text(tokenizer_config, kind) for kind in _ID_KEYS}
    ids_by_text = _ids_by_text(tokenizer_config)
    if not ids_by_text and any(texts.values()):
        ids_by_text = _added_ids(tokenizer_json)
    for kind, key in _ID_KEYS.items():
        named = ids_by_text.get(texts[kind] or "")
        ids = [named] if named is not None else [*_token_ids(config, kind), *_token_ids(generation, kind)]
        if ids:
            metadata[key] = ids[0]
    first = [metadata[_ID_KEYS["eos"]]] if _ID_KEYS["eos"] in metadata else []
    metadata[EOS_TOKEN_IDS] = list(dict.fromkeys([*first, *_token_ids(generation, "eos"), *_token_ids(config, "eos")]))
    metadata |= _added_tokens(tokenizer_config, tokenizer_json)
    metadata |= _chat_templates(tokenizer_config, folder)
    return metadata


# -- special tokens --------------------------------------------------------------------------------------------------------------------


def _token_text(tokenizer_config: JsonObject, kind: str) -> str | None:
    """The token's text: either given as such, or as the content of an object."""
    entry = tokenizer_config.values.get(f"{kind}_token")
    return tokenizer_config.object(f"{kind}_token").text("content", None) if isinstance(entry, dict) else _text_or_none(entry)


def _text_or_none(entry: object) -> str | None:
    return entry if isinstance(entry, str) else None


def _ids_by_text(tokenizer_config: JsonObject) -> dict[str, int]:
    decoder = tokenizer_config.object("added_tokens_decoder")
    ids = {}
    for number in decoder.values:
        if not number.isdecimal() or len(number) > 9:
            raise ModelFileError(f"{decoder.where}: the key {number[:100]!r} is not a token's number; fetch the file again")
        ids[decoder.object(number).text("content")] = int(number)
    return ids


def _added_ids(tokenizer_json: Path) -> dict[str, int]:
    """The same from tokenizer.json, for newer folders, whose tokenizer_config.json lists no tokens."""
    tokenizer = JsonObject.read_if_there(tokenizer_json)
    added = tokenizer.values.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise tokenizer.fail("added_tokens", "a list of objects")
    tokens = [JsonObject(token, f"{tokenizer.where} (added_tokens)") for token in added]
    return {token.text("content"): token.integer("id") for token in tokens}


def _token_ids(source: JsonObject, kind: str) -> list[int]:
    """The numbers under bos_token_id and the like: one, several, or none."""
    key = f"{kind}_token_id"
    value = source.values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise source.fail(key, "a token's number or a list of them")
    return ids


def _added_tokens(tokenizer_config: JsonObject, tokenizer_json: Path) -> dict[str, bool]:
    """Whether BOS and EOS are added: as tokenizer_config.json says, else as the post-processor of tokenizer.json does."""
    said = {kind: tokenizer_config.truth(f"add_{kind}_token", None) for kind in ("bos", "eos")}
    if None in said.values() and tokenizer_json.exists():
        # A large file: read only where it is needed.
        done = _post_processed(JsonObject.read(tokenizer_json))
        for kind, place in (("bos", 0), ("eos", -1)):
            if said[kind] is None and done:
                said[kind] = done[place] is not None and done[place] == _token_text(tokenizer_config, kind)
    return {f"tokenizer.ggml.add_{kind}_token": added for kind, added in said.items() if added is not None}


def _post_processed(tokenizer: JsonObject) -> list[str | None]:
    """What stands around one text: special tokens by their text, None for the text itself. Empty where no template says."""
    post = tokenizer.object("post_processor")
    inner = post.values.get("processors")
    for processor in inner if isinstance(inner, list) else [post.values]:
        if isinstance(processor, dict) and processor.get("type") == "TemplateProcessing":
            template = JsonObject(processor, f"{post.where} (TemplateProcessing)")
            pieces = processor.get("single")
            if not isinstance(pieces, list) or not all(isinstance(piece, dict) for piece in pieces):
                raise template.fail("single", "a list of objects")
            return [JsonObject(piece, template.where).object("SpecialToken").text("id", None) for piece in pieces]
    return []


# -- chat templates --------------------------------------------------------------------------------------------------------------------


def _chat_templates(tokenizer_config: JsonObject, folder: Path) -> dict[str, Any]:
    """The template, and further ones by name where there are several, as the gguf package writes them."""
    template = tokenizer_config.values.get("chat_template")
    if template is None:
        template = _template_file(folder)
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    if not isinstance(template, list) or not all(isinstance(entry, Mapping) for entry in template):
        raise tokenizer_config.fail("chat_template", "a text or a list of named texts")
    entries = [JsonObject(entry, f"{tokenizer_config.where} (chat_template)") for entry in template]
    named = {entry.text("name"): entry.text("template") for entry in entries}
    others = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
    default = {"tokenizer.chat_template": named["default"]} if "default" in named else {}
    return default | others


def _template_file(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if not jinja.exists():
        return JsonObject.read_if_there(folder / "chat_template.json").text("chat_template", None)
    try:
        return jinja.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{jinja}: the chat template cannot be read ({error}); fetch it again") from None
