//! The product of activations and weights in either [`Precision`]. Buffers are of `f32` for both: fixed point is in their bits.

use bytemuck::{cast_slice, cast_slice_mut};
use kernels::Isa;
use kernels::fixed::{self, round_tokens, round_weights};
use kernels::gemm::{self, Panels};
use kernels::matrix::{Matrix, MatrixMut};

use crate::options::Precision;

impl Precision {
    /// Values of a buffer for weights [rows, k].
    pub(super) fn packed_len(self, rows: usize, k: usize) -> usize {
        match self {
            Precision::F32 => Panels::len(rows, k),
            Precision::Fixed => fixed::Weights::len(rows, k),
        }
    }

    /// Packs weights for the product.
    pub(super) fn pack(self, weights: Matrix, packed: &mut [f32]) {
        match self {
            Precision::F32 => gemm::pack(Isa::detect(), weights, packed),
            Precision::Fixed => round_weights(Isa::detect(), weights, cast_slice_mut(packed)),
        }
    }

    /// Values of a buffer that [`prepare`](Self::prepare) needs for activations [tokens, k].
    pub(super) fn prepared_len(self, tokens: usize, k: usize) -> usize {
        match self {
            Precision::F32 => 0,
            Precision::Fixed => fixed::Tokens::len(tokens, k),
        }
    }

    /// Makes activations ready for products.
    pub(super) fn prepare(self, x: Matrix, prepared: &mut [f32]) {
        if self == Precision::Fixed {
            round_tokens(Isa::detect(), x, cast_slice_mut(prepared));
        }
    }

    /// Writes x · wᵀ, where `packed` is w and `prepared` is x made ready.
    pub(super) fn multiply(self, x: Matrix, prepared: &[f32], packed: &[f32], out: MatrixMut) {
        let (isa, rows, k) = (Isa::detect(), out.columns, x.columns);
        match self {
            Precision::F32 => gemm::multiply(isa, x, Panels::new(packed, rows, k), out),
            Precision::Fixed => {
                let x = fixed::Tokens::new(cast_slice(prepared), x.rows, k);
                fixed::multiply(isa, x, fixed::Weights::new(cast_slice(packed), rows, k), out);
            }
        }
    }
}
