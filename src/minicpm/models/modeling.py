"""The MiniCPM decoder as transformers-native classes: Llama with three muP scalings and fp32 rotary embedding.

    h = embed_tokens(ids) * scale_emb          (inputs_embeds come in already scaled)
    h = h + residual_scale * attention(norm(h));  h = h + residual_scale * mlp(norm(h))     per layer
    logits = lm_head(norm(h) * logit_scale)

Residual adds stay in the model's dtype also in fp16: the branches are damped by residual_scale and the head's input by
logit_scale, so nothing here grows as it does once the scalings are folded into weights. RMSNorm is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
    rotate_half,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from minicpm.errors import FormatError, ModelError
from minicpm.formats.config import dynamic_rope_base, read_config_json
from minicpm.formats.folder import ModelFolder
from minicpm.models.configuration import MiniCPMConfig
from minicpm.models.conversation import chat
from minicpm.models.quantized import QuantizedEmbedding, QuantizedLinear

# (cos, sin), each (B or 1, T, head_dim) float32.
PositionEmbeddings = tuple[torch.Tensor, torch.Tensor]


class MiniCPMScaledEmbedding(nn.Embedding):
    """Token embedding that multiplies by `embed_scale` (vLLM's transformers backend and PEFT read this very name)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, embed_scale: float):
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.embed_scale = embed_scale

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids) * self.embed_scale


class MiniCPMRotaryEmbedding(nn.Module):
    """Positions -> (cos, sin) in float32, with linear or dynamic-NTK context extension.

    It has no state and no buffer: nothing to be rounded by `model.half()`, lost on the meta device, or changed by an
    earlier long call (the 2024 code kept its stretched table, and short prompts then gave other logits).
    """

    def __init__(self, config: MiniCPMConfig):
        super().__init__()
        rope = config.checked_rope_parameters()
        self.rope_type: str = rope["rope_type"]
        self.theta: float = rope["rope_theta"]
        self.factor: float = rope.get("factor", 1.0)
        self.max_position_embeddings = config.max_position_embeddings
        self.head_dim = config.head_dim

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def forward(self, position_ids: torch.Tensor, rope_length: int | torch.Tensor | None = None) -> PositionEmbeddings:
        """cos and sin (B, T, D) for position_ids (B, T).

        rope_length matters to dynamic NTK only: the sequence length whose base is used, a number or a tensor that
        broadcasts to position_ids, so that the rows, or the tokens of a flattened batch, may differ. Without it every
        row takes its own largest position + 1.
        """
        device = position_ids.device
        exponent = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim  # (D/2,)
        base: torch.Tensor | float = self.theta
        if self.rope_type == "dynamic":
            if rope_length is None:
                rope_length = position_ids.amax(dim=-1, keepdim=True) + 1
            base = dynamic_rope_base(
                torch.as_tensor(rope_length, device=device).float()[..., None],
                theta=self.theta,
                factor=self.factor,
                trained_length=self.max_position_embeddings,
                head_dim=self.head_dim,
            )
        positions = position_ids.float()
        if self.rope_type == "linear":
            positions = positions / self.factor
        angles = positions[..., None] * (1.0 / (base**exponent))  # (B, T, D/2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of queries or keys (B, H, T, D), computed in float32, returned in their dtype."""
    # cos and sin rounded to bf16 or fp16 cost 1 to 1.5 % more mean logit error (400 tokens on golden/minicpm2b_tied).
    wide = states.float()
    return (wide * cos[:, None] + rotate_half(wide) * sin[:, None]).to(states.dtype)


class MiniCPMAttention(LlamaAttention):
    """Llama's attention with the rotation in float32."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        B, T = hidden_states.shape[:-1]
        split = (B, T, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(split).transpose(1, 2)  # (B, H, T, D)
        key_states = self.k_proj(hidden_states).view(split).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(split).transpose(1, 2)
        cos, sin = position_embeddings
        query_states, key_states = rotate(query_states, cos, sin), rotate(key_states, cos, sin)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attn_output.reshape(B, T, -1).contiguous()), attn_weights


class MiniCPMDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP, each normalised before and damped by `residual_scale` after."""

    def __init__(self, config: MiniCPMConfig, layer_idx: int):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.residual_scale = config.residual_scale
        self.self_attn = MiniCPMAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: PositionEmbeddings | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        branch, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = hidden_states + branch * self.residual_scale
        branch = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + branch * self.residual_scale


class MiniCPMPreTrainedModel(PreTrainedModel):
    config: MiniCPMConfig
    config_class = MiniCPMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MiniCPMDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MiniCPMDecoderLayer,
        "attentions": MiniCPMAttention,
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As transformers', but code in the folder never runs, whatever `trust_remote_code` says, and no shard is read
        from outside the folder (FormatError).

        A folder of `minicpm quantize` whose embedding or head is packed, which transformers cannot place, is loaded by
        `load_model`: its weights stay codes and scales. ModelError for what such a model cannot be.
        """
        from minicpm.models.pretrained import has_packed_embedding, load_packed  # they build these classes

        kwargs.pop("trust_remote_code", None)
        if pretrained_model_name_or_path is not None and Path(pretrained_model_name_or_path).is_dir():
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            _require_own_shards(folder)
            if kwargs.get("quantization_config") is None and has_packed_embedding(folder):
                return load_packed(cls, folder, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers'; ModelError for weights that are codes and scales, which it would leave out in silence."""
        if any(isinstance(module, QuantizedLinear | QuantizedEmbedding) for module in self.modules()):
            raise ModelError(
                "this model's weights are INT4 or INT8 codes, which save_pretrained cannot write; copy the folder it "
                "was loaded from"
            )
        super().save_pretrained(*args, **kwargs)


def _require_own_shards(folder: Path) -> None:
    """transformers opens whatever path an index names; here it must be a file of the folder."""
    for index in folder.glob("*.index*.json"):
        names = read_config_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise FormatError(index, "has no weight_map")
        for name in names.values():
            ModelFolder(folder).file(name)


class MiniCPMModel(MiniCPMPreTrainedModel):
    """The decoder without a head: ids or scaled embeddings -> hidden states after the final norm."""

    def __init__(self, config: MiniCPMConfig):
        config.validate_architecture()  # a caller may have changed it since it was made
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = MiniCPMScaledEmbedding(
            config.vocab_size, config.hidden_size, self.padding_idx, embed_scale=config.scale_emb
        )
        self.layers = nn.ModuleList(MiniCPMDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MiniCPMRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        rope_length: int | torch.Tensor | None = None,
        position_embeddings: PositionEmbeddings | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (B, T, hidden) of input_ids (B, T), or of inputs_embeds (B, T, hidden) already times scale_emb.

        rope_length fixes the base of dynamic NTK for a cache that grows (see MiniCPMRotaryEmbedding); a caller that
        computed `rotary_emb(position_ids, rope_length)` itself passes it as position_embeddings. All other keywords
        reach the attention function.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past)[None]
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_embeddings is None:
            position_embeddings = self.rotary_emb(position_ids, rope_length)
        hidden_states = inputs_embeds
        for layer in self.layers[: self.config.num_hidden_layers]:  # early exit of assisted decoding lowers it
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


def keep_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The positions of hidden_states (B, T, hidden) whose logits are wanted.

    An int keeps the last so many (0: all), a tensor (N,) the same positions of every row, (B, N) integers others in
    each row; (B, T) booleans give the chosen ones flattened, (chosen, hidden). As in transformers' own models.
    """
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    if logits_to_keep.ndim == 2 and logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    if logits_to_keep.ndim == 2:
        return torch.take_along_dim(hidden_states, logits_to_keep[..., None], dim=1)
    return hidden_states[:, logits_to_keep]


class MiniCPMForCausalLM(MiniCPMPreTrainedModel, GenerationMixin):
    """The decoder with its language-model head, `generate` and `chat`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012

    def __init__(self, config: MiniCPMConfig):
        super().__init__(config)
        self.model = MiniCPMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    chat = chat

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        rope_length: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, vocab) in the model's dtype, and the loss when labels (B, T) are given.

        logits_to_keep: see keep_positions. rope_length and position_embeddings: see MiniCPMModel.forward.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            rope_length=rope_length,
            **kwargs,
        )
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)
        # The scale is here and not in a Linear subclass: resizing an untied head replaces it by a plain Linear.
        logits = self.lm_head(hidden_states * self.config.logit_scale)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        # Dynamic NTK: one base per text from its first token to its last, that of the length `generate` may reach, so
        # that a cached continuation equals a recomputation with the same rope_length, and a padded row equals the row
        # alone. The 2024 code changed the base at each step.
        if self.model.rotary_emb.rope_type == "dynamic" and model_kwargs.get("rope_length") is None:
            mask = model_kwargs.get("attention_mask")
            padding = 0 if mask is None else (mask == 0).sum(dim=-1, keepdim=True)  # (B, 1)
            model_kwargs["rope_length"] = max_cache_length + 1 - padding  # the last token is never cached
        return super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', for assistants of other families too: only MiniCPM knows a rope_length."""
        assistant = kwargs.get("assistant_model")
        if assistant is not None and not isinstance(assistant, MiniCPMPreTrainedModel):
            kwargs["model_kwargs"] = {k: v for k, v in kwargs["model_kwargs"].items() if k != "rope_length"}
        return super()._get_candidate_generator(*args, **kwargs)


class MiniCPMForSequenceClassification(GenericForSequenceClassification, MiniCPMPreTrainedModel):
    """The decoder with a `score` head on each row's last token that is not padding."""
