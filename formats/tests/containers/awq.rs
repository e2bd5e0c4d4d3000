//! Folders of AWQ, packed here as AutoAWQ does.

use halfbyte_formats::joined::{Convention, Joined};
use halfbyte_formats::{Dtype, Error, TensorSource};
use kernels::{float, w4a16_asym::w4a16_asym};
use serde_json::{Value, json};

use crate::names;
use crate::packed::{self, Entry, Weight, values, words};

/// Which of eight rows each four bits of a word have, from the lowest.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn entries(weight: &Weight) -> [Entry; 3] {
    let words_in_row = Weight::ROWS / 8;
    let pack = |of: &dyn Fn(usize) -> u32| ORDER.iter().enumerate().map(|(k, &row)| of(row) << (4 * k)).sum();
    let place = |i: usize| (i / words_in_row, i % words_in_row * 8);
    let codes = (0..weight.columns * words_in_row).map(|i| {
        let (column, first) = place(i);
        pack(&|row| weight.code(first + row, column))
    });
    let zeros = (0..weight.groups() * words_in_row).map(|i| {
        let (group, first) = place(i);
        pack(&|row| weight.zero(first + row, group))
    });
    [
        ("a.qweight", "I32", &[64, 2], words(codes)),
        ("a.qzeros", "I32", &[2, 2], words(zeros)),
        ("a.scales", "BF16", &[2, 16], weight.scales()),
    ]
}

fn open(tensors: &[Entry], quantization: &Value) -> Result<Joined, Error> {
    packed::open(tensors, &json!({ "quantization_config": quantization }))
}

fn autoawq() -> Value {
    json!({ "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm" })
}

#[test]
fn autoawqs_and_autorounds_are_read_as_they_were_packed() {
    let weight = Weight::new(64);
    let autoround =
        json!({ "quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq" });
    for quantization in [autoawq(), autoround] {
        let source = open(&entries(&weight), &quantization).unwrap();
        assert_eq!((source.convention(), source.tensors().len()), (Convention::Awq, 1));
        let meta = source.meta(source.find("a.weight").unwrap());
        assert_eq!(meta.dtype, Dtype::Block(w4a16_asym(32, &float::BF16).unwrap()));
        assert_eq!(meta.shape, [16, 64]);
        assert_eq!(values(&source, "a.weight"), weight.values());
    }
}

#[test]
fn what_is_missing_or_contradicts_is_named() {
    let refused = |change: &dyn Fn(&mut Vec<Entry>), parts: &[&str]| {
        let mut tensors = entries(&Weight::new(64)).to_vec();
        change(&mut tensors);
        names(&open(&tensors, &autoawq()).unwrap_err(), parts);
    };
    refused(&|t| drop(t.remove(2)), &["a.qweight", "no a.scales", "fetch all shards"]);
    refused(&|t| drop(t.remove(1)), &["a.qweight", "no a.qzeros"]);
    refused(&|t| t[0].1 = "F32", &["a.qweight f32", "I32"]);
    // As GPTQ has them.
    refused(&|t| t[0].2 = &[8, 16], &["a.qweight I32 [8, 16]", "don't belong together"]);
    refused(&|t| t[1].2 = &[4, 1], &["a.qzeros I32 [4, 1]"]);
    let of_16 = |t: &mut Vec<Entry>| {
        t[1] = ("a.qzeros", "I32", &[4, 2], vec![0; 32]);
        t[2] = ("a.scales", "BF16", &[4, 16], vec![0; 128]);
    };
    refused(&of_16, &["groups of 16", "group_size 32"]);
}
