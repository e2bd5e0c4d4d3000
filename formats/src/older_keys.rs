//! Keys of `config.json` that transformers 5 no longer writes but mlx-lm's models read. Without them these compute with
//! defaults of their own, silently.

use serde_json::{Map, Value};

/// Adds `rope_theta`, `partial_rotary_factor` and `rope_scaling` (with `type`) beside `rope_parameters`, `torch_dtype` beside
/// `dtype`, `num_experts` beside `num_local_experts`, MiniMax M2's shared expert of no width, and what transformers' GLM 5 always
/// does; for kinds of layers `rope_local_base_freq`, `sliding_window_pattern`, `full_attention_interval`, `global_head_dim` and `num_global_key_value_heads`
/// beside `rope_parameters`, `layer_types` and `per_layer_config`. What is there stays.
pub(crate) fn add_older_keys(config: &mut Map<String, Value>) {
    if let Some(Value::Object(inner)) = config.get_mut("text_config") {
        add_older_keys(inner);
    }
    let mut older = vec![
        ("torch_dtype", config.get("dtype").cloned()),
        ("num_experts", config.get("num_local_experts").cloned()),
    ];
    if let Some(period) = config.get("layer_types").and_then(period) {
        older.push(("sliding_window_pattern", Some(period.into())));
        older.push(("full_attention_interval", Some(period.into())));
    }
    if let Some(layer) = config.get("per_layer_config").and_then(|layers| layers.as_object()?.values().next())
    {
        older.push(("global_head_dim", layer.get("head_dim").cloned()));
        older.push(("num_global_key_value_heads", layer.get("num_key_value_heads").cloned()));
    }
    let mut rope = config.get("rope_parameters");
    if let Some(full) = rope.and_then(|rope| rope.get("full_attention")) {
        let local = rope.and_then(|rope| rope.get("sliding_attention")?.get("rope_theta"));
        older.push(("rope_local_base_freq", local.cloned()));
        rope = Some(full);
    }
    if let Some(Value::Object(rope)) = rope {
        older.push(("rope_theta", rope.get("rope_theta").cloned()));
        older.push(("partial_rotary_factor", rope.get("partial_rotary_factor").cloned()));
        let mut scaling = Value::Null;
        // Gemma 4 is newer than the other style.
        let is_old = |kind: &&Value| !["default", "proportional"].iter().any(|new| *kind == new);
        if let Some(kind) = rope.get("rope_type").filter(is_old) {
            let rest = rope.iter().filter(|(key, _)| *key != "rope_theta" && *key != "partial_rotary_factor");
            let mut rest: Map<_, _> = rest.map(|(key, value)| (key.clone(), value.clone())).collect();
            rest.entry("type").or_insert(kind.clone());
            scaling = rest.into();
        }
        older.push(("rope_scaling", Some(scaling)));
    }
    if config.get("model_type").is_some_and(|kind| kind == "minimax_m2") {
        older.push(("shared_intermediate_size", Some(0.into())));
    }
    if config.get("model_type").is_some_and(|kind| kind == "glm_moe_dsa") {
        let fixed = [
            ("topk_method", "noaux_tc".into()),
            ("scoring_func", "sigmoid".into()),
            ("moe_layer_freq", 1.into()),
        ];
        older.extend(fixed.map(|(key, value)| (key, Some(value))));
    }
    for (key, value) in older {
        if let (Some(value), None | Some(Value::Null)) = (value, config.get(key)) {
            config.insert(key.to_owned(), value);
        }
    }
}

/// n, if every n-th layer and no other has full attention.
fn period(types: &Value) -> Option<u64> {
    let full: Vec<bool> = types.as_array()?.iter().map(|kind| kind == "full_attention").collect();
    let period = full.iter().position(|&full| full)? as u64 + 1;
    (1..).zip(&full).all(|(n, &full)| full == u64::is_multiple_of(n, period)).then_some(period)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn completed(config: Value) -> Value {
        let Value::Object(mut config) = config else { panic!("no object") };
        add_older_keys(&mut config);
        config.into()
    }

    #[test]
    fn newer_configurations_are_completed() {
        let new = json!({"dtype": "bfloat16", "num_local_experts": 8, "rope_scaling": null,
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0}});
        let config = completed(new.clone());
        assert_eq!(config["rope_theta"], 5e5);
        assert_eq!(config["rope_scaling"], json!({"rope_type": "yarn", "factor": 4.0, "type": "yarn"}));
        assert_eq!((&config["torch_dtype"], &config["num_experts"]), (&json!("bfloat16"), &json!(8)));
        assert_eq!(completed(json!({"text_config": new}))["text_config"], config);
        let plain = json!({"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5});
        let plain = completed(json!({"rope_parameters": plain, "model_type": "minimax_m2"}));
        assert_eq!(
            (plain.get("rope_theta"), plain.get("rope_scaling")),
            (Some(&json!(1e4)), Some(&Value::Null))
        );
        assert_eq!(
            (&plain["partial_rotary_factor"], &plain["shared_intermediate_size"]),
            (&json!(0.5), &json!(0))
        );
    }

    #[test]
    fn glm5_says_how_it_routes() {
        let config = completed(json!({"model_type": "glm_moe_dsa", "moe_layer_freq": 2}));
        assert_eq!(
            (&config["topk_method"], &config["scoring_func"]),
            (&json!("noaux_tc"), &json!("sigmoid"))
        );
        assert_eq!(config["moe_layer_freq"], 2);
    }

    #[test]
    fn kinds_of_layers_are_spelled_out() {
        let (local, full) = ("sliding_attention", "full_attention");
        let config = completed(
            json!({"layer_types": [local, full, local], "per_layer_config": {"1": {"head_dim": 8}},
            "rope_parameters": {local: {"rope_theta": 1e4, "rope_type": "default"},
                                full: {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}}}),
        );
        assert_eq!((&config["rope_theta"], &config["rope_local_base_freq"]), (&json!(1e6), &json!(1e4)));
        assert_eq!(config["rope_scaling"]["type"], "linear");
        assert_eq!((&config["sliding_window_pattern"], &config["global_head_dim"]), (&json!(2), &json!(8)));
        let config = completed(json!({"layer_types": [local, full, full]}));
        assert_eq!(config.get("sliding_window_pattern"), None);
    }

    #[test]
    fn what_is_there_stays() {
        let old = json!({"rope_theta": 7.0, "torch_dtype": "float16", "dtype": "bfloat16", "hidden_size": 4});
        assert_eq!(completed(old.clone()), old);
    }
}
