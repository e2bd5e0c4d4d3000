//! GLM 5: latent attention over the tokens that an indexer selects (DeepSeek Sparse Attention,
//! <https://arxiv.org/abs/2512.02556>). Some layers run an indexer, the others attend to what the last of those selected.

use super::builder::{Builder, Dim, same};
use super::{Family, Keys, mla};
use crate::config::{ModelConfig, Scoring};
use crate::error::Result;
use crate::output::Class;

pub(super) const GLM_MOE_DSA: Family =
    Family { model_type: "glm_moe_dsa", arch: "glm-dsa", tensors, metadata };

/// The layers with an indexer of their own, if the file tells them apart.
fn indexers(config: &ModelConfig) -> Result<Option<Vec<bool>>> {
    let Some(types) = config.keys.texts("indexer_types")? else { return Ok(None) };
    let full: Vec<bool> = types.iter().map(|kind| kind == "full").collect();
    if full.len() != config.layers as usize || full.first() != Some(&true) {
        let problem = format!(
            "is {types:?}, not a type for each of {} layers of which the first is full",
            config.layers
        );
        return Err(config.error("indexer_types", problem));
    }
    Ok(Some(full))
}

fn tensors(b: &mut Builder) -> Result<()> {
    let full = indexers(b.config)?;
    mla::model(b, true, |b, layer| match &full {
        Some(full) if !full[layer as usize] => Ok(()),
        _ => indexer(b),
    })
}

fn indexer(b: &mut Builder) -> Result<()> {
    let (config, hidden) = (b.config, b.config.hidden_dim());
    let (mla, _) = mla::parts(config)?;
    let rank = mla.q_lora.ok_or_else(|| config.error("q_lora_rank", "is missing"))?;
    let heads = Dim(config.keys.size("index_n_heads")?, "index_n_heads");
    let key = Dim(config.keys.size("index_head_dim")?, "index_head_dim");
    let queries = Dim(heads.0 * key.0, "index_n_heads · index_head_dim");

    b.linear(
        Class::Other,
        same("self_attn.indexer.wq_b", "indexer.attn_q_b"),
        queries,
        Dim(rank, "q_lora_rank"),
    )?;
    b.linear(Class::Other, same("self_attn.indexer.wk", "indexer.attn_k"), key, hidden)?;
    let norm = same("self_attn.indexer.k_norm", "indexer.k_norm");
    b.norm(norm, key)?;
    b.vector("self_attn.indexer.k_norm.bias", b.name(norm, ".bias", false), Class::Vector, key, None)?;
    b.linear(Class::Other, same("self_attn.indexer.weights_proj", "indexer.proj"), heads, hidden)
}

fn metadata(config: &ModelConfig, keys: &mut Keys) -> Result<()> {
    mla::metadata(config, keys, Scoring::Sigmoid)?;
    keys.count("attention.indexer.head_count", config.keys.size("index_n_heads")?)?;
    keys.count("attention.indexer.key_length", config.keys.size("index_head_dim")?)?;
    keys.count("attention.indexer.top_k", config.keys.size("index_topk")?)?;
    if let Some(full) = indexers(config)? {
        keys.set("attention.indexer.types", full);
    }
    Ok(())
}
