//! [`Ops`], one operation after the other.

use std::ops::Range;

use kernels::shaders::{Function, Other};

use super::bank::Bank;
use super::rowwise::{self, elementwise};
use super::tensor::Tensor;
use super::{Gpu, attention, copy, delta};
use crate::error::Result;
use crate::ops::{Activation, Attention, DeltaRule, Ops, Rotary, Sequences};
use crate::store::Space;
use crate::weights::{Linear, Stack};

impl Ops for Gpu<'_> {
    type Tensor = Tensor;
    type Bank = Bank;

    fn upload(&self, values: Vec<f32>, columns: usize) -> Tensor {
        Tensor::with(&self.device, &values, columns)
    }

    fn download(&self, x: Tensor) -> Result<Vec<f32>> {
        self.device.read(x.buffer(), x.bytes())
    }

    fn bank(&self, space: &Space, rows: usize, width: usize) -> Result<Bank> {
        Bank::new(&self.device, space, rows, width, self.room)
    }

    fn put(&self, bank: &mut Bank, first: usize, x: Tensor) -> Result<()> {
        bank.put(&self.device, first, &x)
    }

    fn take(&self, bank: &Bank, rows: Range<usize>) -> Result<Tensor> {
        bank.take(&self.device, rows)
    }

    fn gather(&self, bank: &Bank, rows: &[usize]) -> Result<Tensor> {
        bank.gather(&self.device, rows)
    }

    fn scatter_add(&self, bank: &mut Bank, rows: &[usize], weights: &[f32], x: &Tensor) -> Result<()> {
        bank.scatter_add(&self.device, rows, weights, x)
    }

    fn embed(&self, table: &Linear, tokens: &[u32]) -> Result<Tensor> {
        let columns = table.columns;
        let mut values = vec![0.0; tokens.len() * columns];
        for (row, &token) in values.chunks_exact_mut(columns).zip(tokens) {
            let token = table.rows.start + token as usize;
            self.tap.rows(table.tensor, token..token + 1, row)?;
        }
        Ok(self.upload(values, columns))
    }

    fn linear(&self, x: &Tensor, w: &Linear) -> Result<Tensor> {
        Gpu::linear(self, x, w)
    }

    fn per_head(&self, x: &Tensor, w: &Stack, transposed: bool) -> Result<Tensor> {
        Gpu::per_head(self, x, w, transposed)
    }

    fn rms_norm(&self, x: &Tensor, group: usize, gain: Option<&[f32]>, eps: f64) -> Tensor {
        rowwise::rms_norm(x, group, gain, eps)
    }

    fn rotate(&self, x: &mut Tensor, rotary: &Rotary, sequences: &Sequences) {
        rowwise::rotate(x, rotary, sequences);
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        attention: &Attention,
        sequences: &Sequences,
    ) -> Tensor {
        attention::attend(&self.device, q, k, v, attention, sequences)
    }

    fn short_convolution(&self, x: &Tensor, taps: &[f32], sequences: &Sequences) -> Tensor {
        delta::short_convolution(&self.device, x, taps, sequences)
    }

    fn delta_rule(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        a: &Tensor,
        b: &Tensor,
        rule: &DeltaRule,
        sequences: &Sequences,
    ) -> Tensor {
        delta::delta_rule(&self.device, q, k, v, a, b, rule, sequences)
    }

    fn gated(&self, gate: Tensor, up: &Tensor, activation: Activation) -> Tensor {
        let (function, numbers) = match activation {
            Activation::Silu => (Function::Silu, [0.0; 2]),
            Activation::GeluTanh => (Function::GeluTanh, [0.0; 2]),
            Activation::Clamped { alpha, limit } => (Function::Clamped, [alpha, limit]),
        };
        elementwise(&gate, function, Other::Same, Some(up), numbers);
        gate
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) {
        elementwise(x, Function::Add, Other::Same, Some(y), [0.0; 2]);
    }

    fn scale(&self, x: &mut Tensor, factor: f32) {
        elementwise(x, Function::Scale, Other::None, None, [factor, 0.0]);
    }

    fn scale_rows(&self, x: &mut Tensor, factors: &[f32]) {
        let factors = Tensor::with(&self.device, factors, 1);
        elementwise(x, Function::Multiply, Other::Row, Some(&factors), [0.0; 2]);
    }

    fn soft_cap(&self, x: &mut Tensor, cap: f32) {
        elementwise(x, Function::SoftCap, Other::None, None, [cap, 0.0]);
    }

    fn sigmoid_gate(&self, x: &mut Tensor, gate: &Tensor) {
        let other = if gate.columns == x.columns { Other::Same } else { Other::Row };
        elementwise(x, Function::SigmoidGate, other, Some(gate), [0.0; 2]);
    }

    fn columns(&self, x: &Tensor, columns: Range<usize>) -> Tensor {
        copy::columns(&self.device, x, columns)
    }

    fn join_heads(&self, a: &Tensor, b: &Tensor, heads: usize, shared: bool) -> Tensor {
        copy::join_heads(&self.device, a, b, heads, shared)
    }

    fn head_columns(&self, x: &Tensor, heads: usize, columns: Range<usize>) -> Tensor {
        copy::head_columns(&self.device, x, heads, columns)
    }
}
