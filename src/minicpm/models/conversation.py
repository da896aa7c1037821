"""`model.chat`: one turn of a conversation, with the signature of 2024 and without its faults.

Differences to the 2024 code: the last generated id is dropped only if it is an end-of-sequence id (it was dropped
always), the caller's history is left alone unless asked otherwise, and settings that cannot act are errors.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from minicpm.chat import CURRENT_TEMPLATE, Message, extract_response
from minicpm.errors import GenerationError

# The signature's defaults that belong to sampling; without sampling they give way silently, other values are errors.
SAMPLING_DEFAULTS = {"top_p": 0.8, "temperature": 0.3}
DEFAULT_MAX_LENGTH = 4096


def chat(
    model: Any,
    tokenizer: Any,
    query: str,
    history: list[Message] | None = None,
    role: str = "user",
    max_length: int = DEFAULT_MAX_LENGTH,
    num_beams: int = 1,
    do_sample: bool = True,
    top_p: float = SAMPLING_DEFAULTS["top_p"],
    temperature: float = SAMPLING_DEFAULTS["temperature"],
    logits_processor: Any = None,
    *,
    update_history: bool = False,
    **kwargs: Any,
) -> tuple[str, list[Message]]:
    """Answer `query` -> (response, history with the new turn and the response appended).

    history: [{"role": ..., "content": ...}, ...]; a new list is returned, and with update_history=True the given list
    itself is extended and returned, as in 2024. max_length counts prompt and answer in tokens, max_new_tokens (a
    keyword) the answer only. Further keywords go to `generate` (streamer, repetition_penalty, top_k, ...; top_k is 50
    unless said). Raises ValueError for a setting that `generate` does not know or that cannot act in the chosen mode,
    GenerationError when the prompt leaves no room for an answer.
    """
    messages = history if update_history and history is not None else list(history or ())
    question: Message = {"role": role, "content": query}
    prompt = _prompt(tokenizer, [*messages, question])
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    prompt_length = inputs["input_ids"].shape[1]
    if "max_new_tokens" in kwargs:
        if max_length != DEFAULT_MAX_LENGTH:
            raise ValueError("pass max_length or max_new_tokens, not both")
    elif prompt_length >= max_length:
        raise GenerationError(
            f"the prompt has {prompt_length} tokens and max_length is {max_length}: "
            "raise max_length or drop the oldest turns of the history"
        )
    elif model.generation_config.max_new_tokens is not None:
        kwargs["max_new_tokens"] = max_length - prompt_length  # else the folder's limit would overrule the caller's
    else:
        kwargs["max_length"] = max_length
    kwargs |= {"num_beams": num_beams, "do_sample": do_sample}
    kwargs |= _sampling_settings(do_sample, top_p=top_p, temperature=temperature)
    generation_config, rest = _strict_generation_config(model, tokenizer, kwargs)
    output = model.generate(**inputs, generation_config=generation_config, logits_processor=logits_processor, **rest)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    answer_ids = without_end(sequences[0, prompt_length:].tolist(), generation_config.eos_token_id)
    # What follows a turn marker belongs to a turn that nobody took.
    response = extract_response(tokenizer.decode(answer_ids))
    messages += [question, {"role": "assistant", "content": response}]
    return response, messages


def _prompt(tokenizer: Any, messages: list[Message]) -> str:
    if tokenizer.chat_template is None:
        return CURRENT_TEMPLATE.render(messages)
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    return text


def without_end(token_ids: list[int], eos_token_id: int | list[int] | None) -> list[int]:
    """`token_ids` less one end-of-sequence id at their end, if there is one."""
    ends = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    return token_ids[:-1] if token_ids and token_ids[-1] in ends else token_ids


def _sampling_settings(do_sample: bool, **settings: float) -> dict[str, float]:
    if do_sample:
        return settings
    for name, value in settings.items():
        if value != SAMPLING_DEFAULTS[name]:
            raise ValueError(f"{name}={value} has no effect with do_sample=False; leave it out or sample")
    # 1.0 switches both off, also where the model's generation_config.json sets them.
    return dict.fromkeys(settings, 1.0)


def _strict_generation_config(model: Any, tokenizer: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's own generation settings under the caller's, refused when one of them cannot act."""
    config = deepcopy(model.generation_config)
    rest: dict[str, Any] = config.update(**kwargs)
    if not config.do_sample:
        for name in ("top_k", "min_p", "typical_p"):
            if name not in kwargs:
                setattr(config, name, None)
    config.validate(strict=True)
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        # One row needs no padding; saying so keeps `generate` from remarking on it.
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return config, rest
