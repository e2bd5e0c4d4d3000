//! Keys that the `config.json` of well-known checkpoints leaves out, because transformers has the value as its default.

/// Default values for a model type.
pub(crate) fn of(model_type: &str) -> &'static [(&'static str, u64)] {
    match model_type {
        // Those of 4 to 27 billion parameters: `transformers/models/gemma3/configuration_gemma3.py`.
        "gemma3_text" => &[
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("vocab_size", 262_208),
            ("max_position_embeddings", 131_072),
            ("rope_theta", 1_000_000),
        ],
        _ => &[],
    }
}
