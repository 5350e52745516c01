"""Architecture of the demo model as a config.json object."""

F, S = "full_attention", "sparse_attention"


def demo_config(vocab_size: int, hidden: int = 256, layers=(F, S, S, S, F, S, S, S, F)) -> dict:
  """Three full layers with three sparse layers after each but the last; 8 heads on 2 KV heads."""
  layers = list(layers)
  kv_source, nearest = [], -1
  for index, kind in enumerate(layers):
    nearest = index if kind == F else nearest
    kv_source.append(nearest if kind == S else -1)
  return {
      "architectures": ["HysparseForCausalLM"],
      "model_type": "hysparse",
      "torch_dtype": "bfloat16",
      "vocab_size": vocab_size,
      "hidden_size": hidden,
      "intermediate_size": 2 * hidden,
      "num_hidden_layers": len(layers),
      "num_attention_heads": 8,
      "num_key_value_heads": 2,
      "head_dim": 64,
      "v_head_dim": 64,
      "hidden_act": "silu",
      "layernorm_epsilon": 1e-5,
      "rope_theta": 640000.0,
      "partial_rotary_factor": 0.5,
      "sliding_window": 128,
      "layer_types": layers,
      "kv_source_layer": kv_source,
      "sparse_granularity": "block",
      "sparse_block_size": 64,
      "sparse_topk_tokens": 512,
      "index_head_reduce": "max",
      "index_score": "prob",
      "attn_output_gate": {"full": False, "sliding": False, "sparse": True},
      "attn_gate_granularity": "head",
      "add_swa_attention_sink_bias": True,
      "add_full_attention_sink_bias": False,
      "add_sparse_attention_sink_bias": True,
      "attention_bias": False,
      "attention_value_scale": None,
      "tie_word_embeddings": False,
      "max_position_embeddings": 32768,
      "bos_token_id": None,
      "eos_token_id": [0, 2],
  }
