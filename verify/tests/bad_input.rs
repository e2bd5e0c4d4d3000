//! Models and inputs that can't be evaluated: errors that say what and where, and nothing is left behind.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use halfbyte_verify::Processor;
use halfbyte_verify::{Error, Input, Options, Precision, evaluate, progress::Silent};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

const WIDTH: usize = 32;

/// Writes a Llama of one layer with constant weights, and four sequences of eight tokens for it; `damage` may change weights.
fn tiny(folder: &Path, vocabulary: usize, damage: impl Fn(&str, &mut Vec<f32>)) -> PathBuf {
    std::fs::create_dir_all(folder).expect("folder");
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": {WIDTH}, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": {WIDTH}, "vocab_size": {vocabulary}, "tie_word_embeddings": true}}"#
    );
    std::fs::write(folder.join("config.json"), config).expect("config");
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
        (layer("input_layernorm"), vec![WIDTH]),
        (layer("post_attention_layernorm"), vec![WIDTH]),
    ];
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
        shapes.push((layer(name), vec![WIDTH, WIDTH]));
    }
    for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        shapes.push((layer(name), vec![WIDTH, WIDTH]));
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count = shape.iter().product::<usize>();
            let mut values: Vec<f32> = (0..count).map(|i| (i % 7) as f32 * 0.1 - 0.25).collect();
            damage(&name, &mut values);
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("view"))
    });
    serialize_to_file(views, None, &folder.join("model.safetensors")).expect("weights");
    folder.to_owned()
}

/// Four sequences of eight tokens, of which one is `token`.
fn tokens(folder: &Path, token: i64) -> PathBuf {
    let mut ids: Vec<i64> = (0..32).map(|i| i % 5).collect();
    ids[19] = token;
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let path = folder.join("tokens.safetensors");
    let view = TensorView::new(Dtype::I64, vec![4, 8], &bytes).expect("view");
    serialize_to_file([("input_ids", view)], None, &path).expect("tokens");
    path
}

fn error(model: &Path, against: Option<&Path>, tokens: &Path) -> Error {
    let options = Options {
        model: model.into(),
        against: against.map(Into::into),
        input: Input::Tokens(tokens.to_owned()),
        context: 8,
        chunks: None,
        stride: None,
        logits: Some(tokens.with_file_name("logits.safetensors")),
        processor: Processor::Cpu,
        precision: Precision::F32,
        threads: Some(1),
        memory: 1 << 20,
    };
    let error = evaluate(&options, &Silent, &AtomicBool::new(false)).expect_err("an error");
    let left = std::fs::read_dir(tokens.parent().expect("folder")).expect("folder");
    let left: Vec<_> = left.map(|entry| entry.expect("entry").file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("logits")), "{left:?}");
    error
}

fn untouched(_: &str, _: &mut Vec<f32>) {}

#[test]
fn a_state_that_is_no_number_is_named_by_place_and_token() {
    let dir = tempfile::tempdir().expect("dir");
    let model = tiny(&dir.path().join("model"), 5, |name, values| {
        if name.ends_with("embed_tokens.weight") {
            values[3 * WIDTH..4 * WIDTH].fill(f32::NAN);
        }
    });
    match error(&model, None, &tokens(dir.path(), 0)) {
        Error::HiddenNotFinite { place, sequence: 0, position: 3 } if place == "the embedding" => {}
        other => panic!("{other}"),
    }
    let model = tiny(&dir.path().join("model"), 5, |name, values| {
        if name.ends_with("down_proj.weight") {
            values[7] = f32::INFINITY;
        }
    });
    match error(&model, None, &tokens(dir.path(), 0)) {
        Error::HiddenNotFinite { place, sequence: 0, position: 0 } if place == "layer 0" => {}
        other => panic!("{other}"),
    }
}

#[test]
fn two_vocabularies_are_not_compared() {
    let dir = tempfile::tempdir().expect("dir");
    let (one, two) =
        (tiny(&dir.path().join("one"), 5, untouched), tiny(&dir.path().join("two"), 6, untouched));
    let message = error(&one, Some(&two), &tokens(dir.path(), 0)).to_string();
    assert!(message.contains("5 tokens") && message.contains('6'), "{message}");
}

#[test]
fn a_token_beyond_the_vocabulary_is_named() {
    let dir = tempfile::tempdir().expect("dir");
    let model = tiny(&dir.path().join("model"), 5, untouched);
    match error(&model, None, &tokens(dir.path(), 77)) {
        Error::NotInVocabulary { sequence: 2, position: 3, token: 77, vocabulary: 5 } => {}
        other => panic!("{other}"),
    }
    let message = error(&model, None, &tokens(dir.path(), -1)).to_string();
    assert!(message.contains("-1") && message.contains("tokens.safetensors"), "{message}");
}

#[test]
fn a_file_without_token_ids_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let model = tiny(&dir.path().join("model"), 5, untouched);
    let wrong = model.join("model.safetensors");
    let options = |input| Options {
        model: model.clone().into(),
        against: None,
        input,
        context: 8,
        chunks: None,
        stride: None,
        logits: None,
        processor: Processor::Cpu,
        precision: Precision::F32,
        threads: None,
        memory: 1 << 20,
    };
    let tell = |input| {
        evaluate(&options(input), &Silent, &AtomicBool::new(false)).expect_err("an error").to_string()
    };
    assert!(tell(Input::Tokens(wrong)).contains("input_ids"));
    // A text wants a tokenizer, which this model lacks.
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "A few words.").expect("text");
    assert!(tell(Input::Text(text)).contains("--tokens"));
}
