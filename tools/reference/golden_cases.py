"""The tiny checkpoints of tests/golden: configuration, seed and sequence length of each."""

F, W, S = "full_attention", "sliding_attention", "sparse_attention"


def _config(layers, **overrides) -> dict:
  """A config.json object: 32 wide, 4 query heads on 2 KV heads of 16, gates and both sinks."""
  raw = {
      "architectures": ["HysparseForCausalLM"],
      "model_type": "hysparse",
      "torch_dtype": "float32",
      "vocab_size": 48,
      "hidden_size": 32,
      "intermediate_size": 40,
      "num_hidden_layers": len(layers),
      "num_attention_heads": 4,
      "num_key_value_heads": 2,
      "head_dim": 16,
      "v_head_dim": 16,
      "hidden_act": "silu",
      "layernorm_epsilon": 1e-5,
      "rope_theta": 640000.0,
      "partial_rotary_factor": 1.0,
      "sliding_window": 32,
      "layer_types": layers,
      "sparse_granularity": "block",
      "sparse_block_size": 64,
      "sparse_topk_tokens": 128,
      "index_head_reduce": "max",
      "attn_output_gate": {"full": False, "sliding": False, "sparse": True},
      "attn_gate_granularity": "head",
      "add_swa_attention_sink_bias": True,
      "add_full_attention_sink_bias": False,
      "add_sparse_attention_sink_bias": True,
      "attention_bias": False,
      "tie_word_embeddings": False,
      "max_position_embeddings": 4096,
      "bos_token_id": 0,
      "eos_token_id": 1,
  }
  raw.update(overrides)
  return raw


# name -> (config, seed, tokens in the sequence)
CASES = {
    "gqa": (_config([F, S, S, F], num_attention_heads=8, head_dim=32, v_head_dim=32,
                    sliding_window=48), 101, 700),
    "partial_rotary": (_config([F, S, S, F], head_dim=24, v_head_dim=12,
                               partial_rotary_factor=0.334, attention_value_scale=0.707), 102, 330),
    "element_gates": (_config([F, S, F, S, F], attn_gate_granularity="element", v_head_dim=8), 103,
                      330),
    "moe": (_config([F, S, F], moe_layer_freq=[0, 1, 1], n_routed_experts=6, num_experts_per_tok=2,
                    moe_intermediate_size=16, scoring_func="sigmoid", topk_method="noaux_tc",
                    n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5,
                    sparse_topk_tokens=64), 104, 330),
    "moe_plain": (_config([F, S, F], moe_layer_freq=[1, 1, 1], n_routed_experts=4,
                          num_experts_per_tok=3, moe_intermediate_size=12, scoring_func="sigmoid",
                          norm_topk_prob=False, routed_scaling_factor=None), 105, 200),
    "sliding_first": (_config([W, W, F, W, S, F], swa_num_attention_heads=2,
                              swa_num_key_value_heads=1, swa_head_dim=8, swa_v_head_dim=12,
                              swa_rope_theta=10000.0,
                              attn_output_gate={"full": False, "sliding": True, "sparse": True}),
                      106, 330),
    "no_sinks_no_gates": (_config([F, S, S, F],
                                  attn_output_gate={"full": False, "sliding": False,
                                                    "sparse": False},
                                  add_swa_attention_sink_bias=False,
                                  add_sparse_attention_sink_bias=False), 107, 330),
    "tied_sparse_last": (_config([F, F, S, S], kv_source_layer=[-1, -1, 0, 1],
                                 tie_word_embeddings=True, num_key_value_heads=4), 108, 330),
    "budget_covers": (_config([F, S, F], sparse_topk_tokens=512, sliding_window=16), 109, 200),
}
