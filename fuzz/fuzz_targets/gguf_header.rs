//! A GGUF of any bytes is refused, or its tensors lie inside it and do not overlap.
#![no_main]

use std::path::Path;

use formats::gguf::read::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let len = file.len() as u64;
    if let Ok(header) = parse_header(Path::new("fuzz"), file, len) {
        let mut end = 0;
        for tensor in header.tensors {
            assert!(tensor.offset >= end);
            end = tensor.offset + tensor.len;
            assert!(end <= len);
        }
    }
});
