//! Folders of AWQ in its GEMM form, as AutoAWQ and GPTQModel write them and transformers, vLLM and SGLang load them. (AutoAWQ:
//! `modules/linear/gemm.py`, `utils/packing_utils.py`.)
//!
//! A quantized weight `X.weight` [N, K] is `X.qweight` (I32 [K, N/8]), `X.qzeros` (I32 [K/g, N/8]) and `X.scales` (F16 [K/g, N]).
//! Words have eight rows each, in an order of their own.

use kernels::{float, table};
use serde_json::{Value, json};

use crate::arrangement::{AWQ_ORDER, Eights, Order};
use crate::linears::{Holds, Linear, Modules, Packing, Part};

/// AWQ.
pub static PACKING: Packing = Packing {
    name: "AWQ",
    formats: table::AWQ,
    scales: Some(&float::F16),
    rows: 8,
    uniform: true,
    parts,
    quantization,
};

fn parts(linear: &Linear) -> Option<Vec<Part>> {
    let (rows, columns, groups) = (linear.rows, linear.columns, linear.groups());
    let eights = |bits| Order::Eights(Eights { bits, places: AWQ_ORDER, across: true, less: 0 });
    let scales = Holds::Arranged(1, Order::Transposed { unit: 2 }, groups);
    Some(vec![
        Part::new(".qweight", "I32", &[columns, rows / 8], Holds::Arranged(0, eights(4), columns)),
        Part::new(".qzeros", "I32", &[groups, rows / 8], Holds::Arranged(2, eights(8), groups)),
        Part::new(".scales", linear.scales()?, &[groups, rows], scales),
    ])
}

fn quantization(modules: &Modules<'_>) -> Value {
    json!({
        "quant_method": "awq",
        "bits": 4,
        "group_size": modules.quantized[0].1.block,
        "zero_point": true,
        "version": "gemm",
        "modules_to_not_convert": modules.left_with_head(),
    })
}
