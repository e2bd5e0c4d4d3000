//! `config.json`, understood once: the hyper-parameters that names, shapes, metadata and the forward pass depend on.
//!
//! Both styles are read: `rope_theta` with `rope_scaling` and `torch_dtype`, and `rope_parameters` with `dtype`
//! (transformers 5). A language model nested in `text_config` is found there.

use std::path::{Path, PathBuf};

use crate::defaults;
use crate::error::{Error, Result};
use crate::keys::Keys;

const PARTIAL: &str = "partial_rotary_factor";

/// A model's hyper-parameters. Sizes are between 1 and 2³² − 1, so that the product of two fits `u64`.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The file they were read from, for messages.
    pub path: PathBuf,
    /// `model_type`: names the family.
    pub model_type: String,
    /// `_name_or_path`: what whoever saved the checkpoint loaded, a Hub id or a path of theirs.
    pub name: Option<String>,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Number of blocks.
    pub layers: u32,
    /// Blocks after those, for predicting more than one token (`num_nextn_predict_layers`).
    pub mtp_layers: u32,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads; `heads` if the file doesn't say.
    pub kv_heads: u64,
    /// Width of a head; `hidden / heads` if the file doesn't say.
    pub head_dim: u64,
    /// Width of a dense MLP.
    pub intermediate: u64,
    /// Rows of the embedding.
    pub vocab: u64,
    /// ε of the RMS norms.
    pub rms_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the output head is the embedding; `None` if the file doesn't say.
    pub tie: Option<bool>,
    /// Tokens a layer with local attention sees, where the model uses it.
    pub sliding_window: Option<u64>,
    /// Longest context the model was made for.
    pub max_positions: Option<u64>,
    /// The mixture of experts, if there is one.
    pub moe: Option<Moe>,
    /// Multi-head latent attention, if the model has it.
    pub mla: Option<Mla>,
    /// The type of the weights that aren't quantized.
    pub dtype: Option<FloatType>,
    /// How the checkpoint itself is quantized.
    pub quantization: Option<SourceQuantization>,
    /// All keys, for what only one family has.
    pub keys: Keys,
}

/// A type of full-precision weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

/// `quantization_config` of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceQuantization {
    /// `quant_method`: `fp8`, `gptq`, ….
    pub method: String,
    /// Rows and columns that share a scale.
    pub weight_block: Option<[u64; 2]>,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies (of layers with full attention, where they differ).
    pub theta: f64,
    /// Which part of a head's dimensions is rotated (`partial_rotary_factor`), if the file says.
    pub partial: Option<f64>,
    /// How they are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched. The fields have the names that transformers gives them.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by the same factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// By wavelength: short ones not, long ones by `factor` (Llama 3.1).
    Llama3 {
        /// For wavelengths above `original / low_freq_factor`.
        factor: f64,
        /// Where the full factor begins.
        low_freq_factor: f64,
        /// Where it ends.
        high_freq_factor: f64,
        /// Context of pretraining.
        original: u64,
    },
    /// Each frequency by a divisor of its own, one list up to the context of pretraining and one past it (LongRoPE,
    /// <https://arxiv.org/abs/2402.13753>).
    LongRope {
        /// Divisors for contexts no longer than `original`.
        short: Vec<f64>,
        /// Divisors for longer ones.
        long: Vec<f64>,
        /// Context of pretraining.
        original: u64,
        /// Multiplier of cos and sin.
        attention_factor: f64,
    },
    /// Not at all, but of the whole head's frequencies only a first part turns (Gemma 4).
    Proportional {
        /// All wavelengths are longer by this.
        factor: f64,
    },
    /// YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// Extension of the context.
        factor: f64,
        /// Context of pretraining.
        original: u64,
        /// Rotations above which a dimension isn't stretched.
        beta_fast: Option<f64>,
        /// Rotations below which it is stretched in full.
        beta_slow: Option<f64>,
        /// Multiplier of cos and sin, given outright.
        attention_factor: Option<f64>,
        /// DeepSeek: weight of ln(factor) in the multiplier of cos and sin.
        mscale: Option<f64>,
        /// DeepSeek: weight of ln(factor) in the softmax scale.
        mscale_all_dim: Option<f64>,
    },
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// Routed experts per layer.
    pub experts: u64,
    /// Of which a token uses so many.
    pub per_token: u64,
    /// Width of an expert's MLP.
    pub intermediate: u64,
    /// Shared experts, side by side in one MLP.
    pub shared: u64,
    /// Groups that the experts are in (`n_group`).
    pub groups: Option<u64>,
    /// Groups that a token may use (`topk_group`).
    pub groups_used: Option<u64>,
    /// How logits become scores, if the file says.
    pub scoring: Option<Scoring>,
    /// Whether the chosen experts' weights are normalised to sum to 1, if the file says.
    pub normalize: Option<bool>,
    /// Factor of the routed experts' sum, if the file says.
    pub scale: Option<f64>,
    /// Layers below this one are dense.
    pub first_dense: u32,
    /// From there on, layers whose number is a multiple of this have experts (counted from 0 with `moe_layer_freq`, from
    /// 1 with `decoder_sparse_step`).
    every: Every,
    /// Layers that are dense all the same.
    pub dense: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Every {
    FromZero(u32),
    FromOne(u32),
}

impl Moe {
    /// Whether a layer has experts.
    pub fn has_experts(&self, layer: u32) -> bool {
        let turn = match self.every {
            Every::FromZero(step) => layer.is_multiple_of(step),
            Every::FromOne(step) => (u64::from(layer) + 1).is_multiple_of(step.into()),
        };
        layer >= self.first_dense && turn && !self.dense.contains(&layer)
    }
}

/// How a router's logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Over all experts.
    Softmax,
    /// Each for itself.
    Sigmoid,
}

/// Multi-head latent attention (DeepSeek V2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mla {
    /// Width of the query's latent, if queries go through one.
    pub q_lora: Option<u64>,
    /// Width of the latent of keys and values.
    pub kv_lora: u64,
    /// A head's dimensions without rotation.
    pub nope: u64,
    /// A head's rotated dimensions.
    pub rope: u64,
    /// A head's width in the values.
    pub v: u64,
}

impl ModelConfig {
    /// Reads `config.json` of a checkpoint's folder.
    ///
    /// # Errors
    /// If the file can't be read, isn't JSON, or lacks a key (which the error names).
    pub fn read(folder: &Path) -> Result<ModelConfig> {
        let path = folder.join("config.json");
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        ModelConfig::parse(&path, &text)
    }

    /// The same from text; `path` is for messages.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(path: &Path, text: &str) -> Result<ModelConfig> {
        let root = serde_json::from_str(text).map_err(|e| Error::Config {
            path: path.to_owned(),
            key: "config".into(),
            problem: e.to_string(),
        })?;
        let mut keys = Keys::new(path, root);
        keys.fill(defaults::of(keys.text("model_type")?.unwrap_or_default()));

        let hidden = keys.size("hidden_size")?;
        let heads = keys.size("num_attention_heads")?;
        let head_dim = match keys.optional_size("head_dim")? {
            Some(size) => size,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(keys.error(
                    "head_dim",
                    format!("is missing, and hidden_size {hidden} / {heads} heads is no integer"),
                ));
            }
        };
        let moe = keys.moe()?;
        let intermediate = match keys.optional_size("intermediate_size")? {
            Some(size) => size,
            None => {
                moe.as_ref().map(|moe| moe.intermediate).ok_or_else(|| keys.missing("intermediate_size"))?
            }
        };
        let sliding = keys.flag("use_sliding_window")?.unwrap_or(true);
        Ok(ModelConfig {
            path: path.to_owned(),
            model_type: keys.text("model_type")?.ok_or_else(|| keys.missing("model_type"))?.to_owned(),
            name: keys.text("_name_or_path")?.map(str::to_owned),
            hidden,
            layers: keys.size("num_hidden_layers")? as u32,
            mtp_layers: keys.integer("num_nextn_predict_layers", 0)?.unwrap_or(0) as u32,
            heads,
            kv_heads: keys.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            intermediate,
            vocab: keys.size("vocab_size")?,
            rms_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope: keys.rope()?,
            tie: keys.flag("tie_word_embeddings")?,
            sliding_window: if sliding { keys.optional_size("sliding_window")? } else { None },
            max_positions: keys.optional_size("max_position_embeddings")?,
            moe,
            mla: keys.mla()?,
            dtype: keys.dtype()?,
            quantization: keys.quantization()?,
            keys,
        })
    }

    /// An error about a key of this file.
    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config { path: self.path.clone(), key: key.into(), problem: problem.into() }
    }
}

impl Keys {
    fn rope(&self) -> Result<Rope> {
        let parameters = match self.object("rope_parameters")? {
            // One for each kind of layer.
            Some(parameters) => parameters.object("full_attention")?.or(Some(parameters)),
            None => self.object("rope_scaling")?,
        };
        let theta = self.number("rope_theta")?;
        let Some(p) = parameters else {
            let theta = theta.unwrap_or(10_000.0);
            return Ok(Rope { theta, partial: self.number(PARTIAL)?, scaling: RopeScaling::None });
        };
        let theta = p.number("rope_theta")?.or(theta).unwrap_or(10_000.0);
        let partial = p.number(PARTIAL)?.or(self.number(PARTIAL)?);
        let kind = match p.text("rope_type")? {
            Some(kind) => kind,
            None => p.text("type")?.unwrap_or("default"),
        };
        let factor = || p.number("factor")?.ok_or_else(|| p.missing("rope scaling's factor"));
        let original = || {
            let key = "original_max_position_embeddings";
            let size = match p.optional_size(key)? {
                Some(size) => Some(size),
                None => self.first_size(&[key, "max_position_embeddings"])?,
            };
            size.ok_or_else(|| p.missing(key))
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: p.number("low_freq_factor")?.unwrap_or(1.0),
                high_freq_factor: p.number("high_freq_factor")?.unwrap_or(4.0),
                original: original()?,
            },
            "proportional" => RopeScaling::Proportional { factor: p.number("factor")?.unwrap_or(1.0) },
            "yarn" => RopeScaling::Yarn {
                factor: factor()?,
                original: original()?,
                beta_fast: p.number("beta_fast")?,
                beta_slow: p.number("beta_slow")?,
                attention_factor: p.number("attention_factor")?,
                mscale: p.number("mscale")?,
                mscale_all_dim: p.number("mscale_all_dim")?,
            },
            "longrope" | "su" => {
                let original = original()?;
                RopeScaling::LongRope {
                    short: p.factors("short_factor")?,
                    long: p.factors("long_factor")?,
                    original,
                    attention_factor: self.longrope_attention_factor(&p, original)?,
                }
            }
            other => {
                let problem =
                    format!("is `{other}`; known are default, linear, llama3, longrope, proportional, yarn");
                return Err(self.error("rope scaling's type", problem));
            }
        };
        Ok(Rope { theta, partial, scaling })
    }

    /// The multiplier of LongRoPE's cos and sin: stated, or by the extension of the context (transformers:
    /// `_compute_longrope_parameters`).
    fn longrope_attention_factor(&self, parameters: &Keys, original: u64) -> Result<f64> {
        if let Some(stated) = parameters.number("attention_factor")? {
            return Ok(stated);
        }
        let original = original as f64;
        let extension = match parameters.number("factor")? {
            Some(factor) => factor,
            None => self.size("max_position_embeddings")? as f64 / original,
        };
        Ok(if extension > 1.0 { (1.0 + extension.ln() / original.ln()).sqrt() } else { 1.0 })
    }

    /// A list of positive numbers.
    fn factors(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        match serde_json::from_value::<Vec<f64>>(value.clone()) {
            Ok(list) if list.iter().all(|&factor| factor > 0.0) => Ok(list),
            _ => Err(self.error(key, "is no list of positive numbers")),
        }
    }

    fn moe(&self) -> Result<Option<Moe>> {
        let Some(experts) = self.first_size(&["n_routed_experts", "num_local_experts", "num_experts"])?
        else {
            return Ok(None);
        };
        let intermediate = self.first_size(&["moe_intermediate_size", "intermediate_size"])?;
        let scoring = match self.text("scoring_func")? {
            None => None,
            Some("softmax") => Some(Scoring::Softmax),
            Some("sigmoid") => Some(Scoring::Sigmoid),
            Some(other) => {
                return Err(self.error("scoring_func", format!("is `{other}`; known are softmax, sigmoid")));
            }
        };
        let every = match self.optional_size("decoder_sparse_step")? {
            Some(step) => Every::FromOne(step as u32),
            None => Every::FromZero(self.optional_size("moe_layer_freq")?.unwrap_or(1) as u32),
        };
        let mut dense = self.integers("mlp_only_layers")?.unwrap_or_default();
        let kinds = self.texts("mlp_layer_types")?.unwrap_or_default();
        dense.extend((0..).zip(&kinds).filter(|(_, kind)| *kind == "dense").map(|(layer, _)| layer));
        let leading = kinds.iter().take_while(|kind| *kind == "dense").count() as u64;
        Ok(Some(Moe {
            experts,
            per_token: self
                .first_size(&["num_experts_per_tok", "top_k_experts"])?
                .ok_or_else(|| self.missing("num_experts_per_tok"))?,
            intermediate: intermediate.ok_or_else(|| self.missing("moe_intermediate_size"))?,
            shared: self.integer("n_shared_experts", 0)?.unwrap_or(0),
            groups: self.optional_size("n_group")?,
            groups_used: self.optional_size("topk_group")?,
            scoring,
            normalize: self.flag("norm_topk_prob")?,
            scale: self.number("routed_scaling_factor")?,
            first_dense: self.integer("first_k_dense_replace", 0)?.unwrap_or(leading) as u32,
            every,
            dense,
        }))
    }

    fn mla(&self) -> Result<Option<Mla>> {
        let Some(kv_lora) = self.optional_size("kv_lora_rank")? else { return Ok(None) };
        Ok(Some(Mla {
            q_lora: self.optional_size("q_lora_rank")?,
            kv_lora,
            nope: self.size("qk_nope_head_dim")?,
            rope: self.size("qk_rope_head_dim")?,
            v: self.size("v_head_dim")?,
        }))
    }

    fn dtype(&self) -> Result<Option<FloatType>> {
        let text = match self.text("dtype")? {
            Some(text) => Some(text),
            None => self.text("torch_dtype")?,
        };
        match text {
            None => Ok(None),
            Some("float32") => Ok(Some(FloatType::F32)),
            Some("float16") => Ok(Some(FloatType::F16)),
            Some("bfloat16") => Ok(Some(FloatType::Bf16)),
            Some(other) => {
                Err(self.error("dtype", format!("is `{other}`; known are float32, float16, bfloat16")))
            }
        }
    }

    fn quantization(&self) -> Result<Option<SourceQuantization>> {
        let Some(q) = self.object("quantization_config")? else { return Ok(None) };
        let weight_block = match q.get("weight_block_size").or(block_structure(&q)) {
            None => None,
            Some(value) => match serde_json::from_value::<[u32; 2]>(value.clone()) {
                Ok(block) if block.iter().all(|&n| n > 0) => Some(block.map(u64::from)),
                _ => {
                    return Err(
                        q.error("weight_block_size", format!("is {value}, not two positive integers"))
                    );
                }
            },
        };
        let method = q.text("quant_method")?.unwrap_or("unnamed").to_owned();
        Ok(Some(SourceQuantization { method, weight_block }))
    }
}

/// The size of blocks that one of compressed-tensors' schemes states.
fn block_structure(quantization: &Keys) -> Option<&serde_json::Value> {
    let groups = quantization.get("config_groups")?.as_object()?;
    groups
        .values()
        .find_map(|group| group.get("weights")?.get("block_structure").filter(|value| !value.is_null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig> {
        ModelConfig::parse(Path::new("config.json"), text)
    }

    const SMALL: &str = r#""model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 100"#;

    #[test]
    fn reads_both_styles_of_rope_and_dtype() {
        let old = parse(&format!(
            r#"{{{SMALL}, "rope_theta": 500000.0, "torch_dtype": "float16", "rope_scaling": {{"rope_type": "llama3",
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}}}"#
        ))
        .unwrap();
        let new = parse(&format!(
            r#"{{{SMALL}, "dtype": "float16", "rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3",
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}}}"#
        ))
        .unwrap();
        assert_eq!(old.rope, new.rope);
        assert_eq!(old.rope.theta, 500_000.0);
        assert_eq!((old.dtype, new.dtype), (Some(FloatType::F16), Some(FloatType::F16)));
        assert_eq!((old.head_dim, old.kv_heads), (16, 4));
        let old = parse(&format!("{{{SMALL}, \"partial_rotary_factor\": 0.5}}")).unwrap();
        let new =
            parse(&format!("{{{SMALL}, \"rope_parameters\": {{\"partial_rotary_factor\": 0.5}}}}")).unwrap();
        assert_eq!((old.rope.partial, new.rope), (Some(0.5), old.rope));
    }

    /// The multiplier of Phi 3.5 mini: √(1 + ln 32 / ln 4096).
    #[test]
    fn longrope() {
        let text = |rope: &str| {
            format!(
                r#"{{{SMALL}, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
                "rope_scaling": {{"long_factor": [1.5, 64], "short_factor": [1, 1.25], {rope}}}}}"#
            )
        };
        for (rope, factor) in [
            (r#""type": "longrope""#, 1.190_238_071_4),
            (r#""type": "su", "factor": 1.0"#, 1.0),
            (r#""rope_type": "longrope", "attention_factor": 1.5"#, 1.5),
        ] {
            let RopeScaling::LongRope { short, long, original, attention_factor } =
                parse(&text(rope)).unwrap().rope.scaling
            else {
                panic!("{rope}")
            };
            assert_eq!((short, long, original), (vec![1.0, 1.25], vec![1.5, 64.0], 4096));
            assert!((attention_factor - factor).abs() < 1e-9, "{attention_factor}");
        }
        let error = parse(&text(r#""type": "su""#).replace("64]", "0]")).unwrap_err().to_string();
        assert!(error.contains("`long_factor` is no list of positive numbers"), "{error}");
    }

    #[test]
    fn finds_a_nested_language_model() {
        let config = parse(&format!(r#"{{"model_type": "outer", "text_config": {{{SMALL}}}}}"#)).unwrap();
        assert_eq!((config.model_type.as_str(), config.hidden), ("llama", 64));
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        let cases = [
            (SMALL.replace("vocab_size", "vocab"), "config.json: `vocab_size` is missing"),
            (
                SMALL.replace("64", "-64"),
                "config.json: `hidden_size` is -64, not an integer from 1 to 4294967295",
            ),
            (SMALL.replace("64", "5000000000"), "not an integer from 1 to 4294967295"),
            (
                SMALL.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 3"),
                "`head_dim` is missing",
            ),
            (
                format!("{SMALL}, \"rope_scaling\": {{\"type\": \"spiral\", \"factor\": 2}}"),
                "is `spiral`; known are",
            ),
            (format!("{SMALL}, \"rope_scaling\": {{\"type\": \"linear\"}}"), "factor` is missing"),
            (format!("{SMALL}, \"dtype\": \"int4\""), "`dtype` is `int4`"),
            ("\"a\": ".into(), "config.json: `config` "),
        ];
        for (body, expected) in cases {
            let message = parse(&format!("{{{body}}}")).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn knows_which_layers_have_experts() {
        let moe = |extra: &str| {
            let text = format!(r#"{{{SMALL}, "num_experts": 8, "num_experts_per_tok": 2, {extra}}}"#);
            let moe = parse(&text).unwrap().moe.unwrap();
            (0..5).filter(|&layer| moe.has_experts(layer)).collect::<Vec<_>>()
        };
        assert_eq!(moe(r#""first_k_dense_replace": 3"#), [3, 4]);
        assert_eq!(moe(r#""moe_layer_freq": 2"#), [0, 2, 4]);
        assert_eq!(moe(r#""decoder_sparse_step": 2"#), [1, 3]);
        assert_eq!(moe(r#""mlp_only_layers": [0, 4]"#), [1, 2, 3]);
    }
}
