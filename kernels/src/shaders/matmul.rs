//! The product with weights in any format.

use super::{Decoder, Operands, Shader, WORDS};

/// How a device multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Each invocation for itself: everywhere.
    Plain,
    /// Cooperative matrices of 8 × 8 elements: where a device has them, for rows that are a multiple of [`TILE`].
    Cooperative,
}

/// Tokens and rows of the tile that a workgroup makes.
pub const TILE: usize = 64;

/// x · wᵀ of activations [tokens, columns] in `operands` and weights [rows, columns]. Workgroups: tiles of rows, tiles of tokens, matrices
/// of a batch.
pub fn matmul(decoder: &Decoder, operands: Operands, unit: Unit) -> Shader {
    let (enable, alias, operands) = match operands {
        Operands::F32 => ("", "alias T = f32;", "f32"),
        Operands::F16 => ("enable f16;", "alias T = f16;", "f16"),
    };
    let stage = include_str!("matmul/stage.wgsl");
    let (more, unit, kernel) = match unit {
        Unit::Plain => ("", "plain", include_str!("matmul/plain.wgsl")),
        Unit::Cooperative => {
            ("enable wgpu_cooperative_matrix;", "cooperative", include_str!("matmul/cooperative.wgsl"))
        }
    };
    Shader {
        name: format!("matmul {} {operands} {unit}", decoder.name),
        text: [enable, more, alias, WORDS, &decoder.text, stage, kernel].join("\n"),
    }
}
