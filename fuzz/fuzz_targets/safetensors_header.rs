//! A safetensors file of any bytes is refused, or its tensors cover all that follows the header.
#![no_main]

use std::path::Path;

use formats::safetensors::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Some((prefix, rest)) = file.split_first_chunk::<8>() else { return };
    let Some(json) = usize::try_from(u64::from_le_bytes(*prefix)).ok().and_then(|len| rest.get(..len)) else {
        return;
    };
    if let Ok(header) = parse_header(Path::new("fuzz"), json, file.len() as u64) {
        let mut end = 8 + json.len() as u64;
        for tensor in header.tensors {
            assert_eq!(tensor.offset, end);
            end += tensor.len;
        }
        assert_eq!(end, file.len() as u64);
    }
});
