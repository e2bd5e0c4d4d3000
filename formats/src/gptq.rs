//! Folders of GPTQ, as GPTQModel writes them and transformers, vLLM and SGLang load them: symmetric codes of 4 bits, in the order of
//! columns. (GPTQModel: `nn_modules/qlinear/__init__.py`, `PackableQuantLinear`; `quantization/config.py`.)
//!
//! A quantized weight `X.weight` [N, K] is `X.qweight` (I32 [K/8, N], eight columns in a word), `X.scales` (F16 [K/g, N]), `X.qzeros`
//! (I32 [K/g, N/8], eight rows in a word) and `X.g_idx` (I32 [K], each column's group). All zero points are 8; the first version
//! stores them less 1.

use kernels::{float, table};
use serde_json::{Map, Value, json};

use crate::arrangement::Order;
use crate::layout::Fill;
use crate::linears::{HEAD, Holds, Linear, Modules, Packing, Part};

/// GPTQ's first version, which everything loads.
pub static V1: Packing = Packing {
    parts: |linear| parts(linear, 0x77),
    quantization: |modules| quantization(modules, "gptq"),
    ..BASE
};

/// Its second version.
pub static V2: Packing = Packing {
    parts: |linear| parts(linear, 0x88),
    quantization: |modules| quantization(modules, "gptq_v2"),
    ..BASE
};

const BASE: Packing = Packing {
    name: "GPTQ",
    formats: table::GPTQ,
    scales: Some(&float::F16),
    rows: 8,
    uniform: true,
    parts: |_| None,
    quantization: |_| Value::Null,
};

/// `zeros` is the byte of two zero points.
fn parts(linear: &Linear, zeros: u8) -> Option<Vec<Part>> {
    let (rows, columns, groups) = (linear.rows, linear.columns, linear.groups());
    let words = Holds::Arranged(0, Order::Transposed { unit: 4 }, columns / 8);
    let scales = Holds::Arranged(1, Order::Transposed { unit: 2 }, groups);
    Some(vec![
        Part::new(".qweight", "I32", &[columns / 8, rows], words),
        Part::new(".scales", linear.scales()?, &[groups, rows], scales),
        Part::new(".qzeros", "I32", &[groups, rows / 8], Holds::Known(Fill::Byte(zeros))),
        Part::new(".g_idx", "I32", &[columns], Holds::Known(Fill::Groups(linear.format.block as u64))),
    ])
}

fn quantization(modules: &Modules<'_>, version: &str) -> Value {
    let left = modules.left.iter().filter(|module| !module.ends_with(HEAD));
    // Expressions, matched from the start.
    let dynamic: Map<String, Value> =
        left.map(|module| (format!("-:^{}$", module.replace('.', "\\.")), json!({}))).collect();
    let mut quantization = json!({
        "quant_method": "gptq",
        "bits": 4,
        "group_size": modules.quantized[0].1.block,
        "sym": true,
        "desc_act": false,
        "lm_head": false,
        "checkpoint_format": version,
        "pack_dtype": "int32",
        "meta": { "quantizer": [concat!("halfbyte:", env!("CARGO_PKG_VERSION"))] },
    });
    if !dynamic.is_empty() {
        quantization["dynamic"] = dynamic.into();
    }
    quantization
}
