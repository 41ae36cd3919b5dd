"""The demo model as a GGUF file, written as llama.cpp's converter writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

from fmstune import demo

_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}


def write_demo(
    path: Path,
    seed: int,
    *,
    quantised: bool = False,
    template: bool = True,
    further: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the demo model with the weights of `seed`; matrices are in Q8_0 if `quantised`. `further` adds
    metadata, and `tensors` are written beside the model's own."""
    model = demo.build_model(seed)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, template=template)
    further(writer)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        module = name.removesuffix(".weight")
        values = tensor.numpy()
        if module in _TOP:
            written = _TOP[module]
        else:
            _, _, layer, module = module.split(".", 3)
            written = f"blk.{layer}.{_LAYER[module]}"
            if module.endswith(("q_proj", "k_proj")):
                queries = module.endswith("q_proj")
                values = _permuted(
                    values, config.num_attention_heads if queries else config.num_key_value_heads
                )
        if quantised and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{written}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{written}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, *, template: bool) -> None:
    tokenizer = json.loads((demo.model_dir() / "tokenizer.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template((demo.model_dir() / "chat_template.jinja").read_text())


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries and keys in the order of llama.cpp's rotary embedding."""
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
