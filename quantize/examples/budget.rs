//! What a model's cache and buffers take, as JSON: for the checks against what the engines allocate (tests/interop/budget.py).
//!
//!     budget llama.cpp|mlx MODEL CONTEXT PARALLEL f16|q8_0|q4_0

use std::{env, error::Error, path::Path};

use formats::{Checkpoint, ModelConfig, checkpoint::Weights, families};
use halfbyte_quantize::budget::{Device, Engine, KvType, Run, buffers, cache};
use serde_json::json;
use verify::hyper::Hyper;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [engine, model, context, parallel, kv] = &arguments[..] else {
        return Err("give: llama.cpp|mlx MODEL CONTEXT PARALLEL f16|q8_0|q4_0".into());
    };
    let checkpoint = Checkpoint::open(&Path::new(model).into())?;
    let metadata = match &checkpoint.weights {
        Weights::Gguf(gguf) => gguf.metadata().clone(),
        _ => families::gguf_metadata(&ModelConfig::read(&checkpoint.folder)?)?,
    };
    let hyper = Hyper::new(metadata, model)?;
    let run = Run {
        engine: if engine == "mlx" { Engine::Mlx } else { Engine::LlamaCpp },
        context: context.parse()?,
        parallel: parallel.parse()?,
        kv: KvType::find(kv)?,
    };
    let layers = cache(&hyper, &run)?;
    let layers = layers
        .iter()
        .map(|layer| json!({ "kind": layer.kind(), "cells": layer.cells, "bytes": layer.bytes }))
        .collect::<Vec<_>>();
    let buffers = buffers(&hyper, &run, &Device::default())?;
    let buffers = buffers
        .iter()
        .map(|one| json!({ "name": one.name, "low": one.bytes.low, "high": one.bytes.high, "basis": one.basis }))
        .collect::<Vec<_>>();
    println!("{}", json!({ "cache": layers, "buffers": buffers }));
    Ok(())
}
