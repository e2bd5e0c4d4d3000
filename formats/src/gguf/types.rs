//! The numbers that GGUF gives to the types of tensors (`enum ggml_type`, `ggml/include/ggml.h`).

use kernels::{Format, table};

use crate::tensor::Dtype;

/// Block types and floats: number and name in the kernels' table. Numbers left out were retired.
const BLOCK: [(u32, &str); 29] = [
    (0, "f32"),
    (1, "f16"),
    (2, "q4_0"),
    (3, "q4_1"),
    (6, "q5_0"),
    (7, "q5_1"),
    (8, "q8_0"),
    (10, "q2_k"),
    (11, "q3_k"),
    (12, "q4_k"),
    (13, "q5_k"),
    (14, "q6_k"),
    (16, "iq2_xxs"),
    (17, "iq2_xs"),
    (18, "iq3_xxs"),
    (19, "iq1_s"),
    (20, "iq4_nl"),
    (21, "iq3_s"),
    (22, "iq2_s"),
    (23, "iq4_xs"),
    (29, "iq1_m"),
    (30, "bf16"),
    (34, "tq1_0"),
    (35, "tq2_0"),
    (39, "mxfp4"),
    (40, "nvfp4"),
    (41, "q1_0"),
    (9, "q8_1"),
    (15, "q8_k"),
];

/// Integers and doubles: number, name, bytes per element.
const OTHER: [(u32, &str, usize); 5] =
    [(24, "i8", 1), (25, "i16", 2), (26, "i32", 4), (27, "i64", 8), (28, "f64", 8)];

/// The type of that number, or what is known of it: its name, or the number.
pub(super) fn dtype(id: u32) -> Result<Dtype, String> {
    if let Some(&(_, name, bytes)) = OTHER.iter().find(|(n, ..)| *n == id) {
        return Ok(Dtype::Other { name, bytes });
    }
    let name = BLOCK.iter().find(|(n, _)| *n == id).map(|(_, name)| *name);
    name.and_then(table::gguf)
        .map(Dtype::Block)
        .ok_or_else(|| name.map_or_else(|| id.to_string(), str::to_owned))
}

/// The number of a format, or `None` if GGUF has no such type.
pub fn id(format: &'static Format) -> Option<u32> {
    // By identity too: MLX has modes of the same names.
    table::gguf(format.name).filter(|f| *f == format)?;
    BLOCK.iter().find(|(_, name)| *name == format.name).map(|(id, _)| *id)
}

/// The names of all types that can be read.
pub(super) fn known() -> String {
    let block = table::GGUF.iter().map(|format| format.name);
    block.chain(OTHER.iter().map(|(_, name, _)| *name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_of_the_table_has_a_number() {
        for format in table::GGUF {
            let id = id(format).unwrap_or_else(|| panic!("{format:?} has no number"));
            assert_eq!(dtype(id), Ok(Dtype::Block(format)));
        }
    }

    #[test]
    fn integers_are_carried() {
        assert_eq!(dtype(26), Ok(Dtype::Other { name: "i32", bytes: 4 }));
    }

    #[test]
    fn retired_and_unknown_numbers_have_no_type() {
        assert_eq!(dtype(4), Err("4".to_owned()));
        assert_eq!(dtype(u32::MAX), Err("4294967295".to_owned()));
    }
}
