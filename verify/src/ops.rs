//! [`Ops`]: what the families' graphs are written in. A device implements it; the graphs don't know which.

use std::ops::Range;

use kernels::rope::Pairs;

use crate::error::Result;
use crate::store::Space;
use crate::weights::{Linear, Stack};

/// The sequences that rows of activations belong to, one after the other. Each begins at position 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// Tokens of each.
    pub lengths: Vec<usize>,
}

impl Sequences {
    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The rows of each.
    pub fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.lengths.iter().scan(0, |end, &length| {
            *end += length;
            Some(*end - length..*end)
        })
    }
}

/// Rotary position embedding of part of each head (Su et al., <https://arxiv.org/abs/2104.09864>).
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Radians per position for each pair.
    pub frequencies: Vec<f64>,
    /// Multiplier of cosine and sine.
    pub multiplier: f64,
    /// Which dimensions turn together.
    pub order: Pairs,
    /// Width of a head.
    pub head: usize,
    /// The first dimension of a head that turns; twice as many as frequencies do.
    pub offset: usize,
}

impl Rotary {
    /// Cosine and sine, times the multiplier, of each pair at a position.
    pub(crate) fn turns(&self, position: usize) -> impl Iterator<Item = [f32; 2]> {
        self.frequencies.iter().map(move |frequency| {
            let angle = position as f64 * frequency;
            [angle.cos(), angle.sin()].map(|x| (x * self.multiplier) as f32)
        })
    }
}

/// Causal softmax attention with grouped queries.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a query and key head.
    pub key: usize,
    /// Width of a value head.
    pub value: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// A token sees itself and the `window − 1` before it.
    pub window: Option<usize>,
    /// Scores become c · tanh(score / c).
    pub soft_cap: Option<f32>,
    /// For each query head, a score in the denominator that carries no value (gpt-oss).
    pub sinks: Option<Vec<f32>>,
}

/// The recurrence of a gated delta network (<https://arxiv.org/abs/2412.06464>): each value head has a state, which forgets, recalls
/// and learns token by token.
#[derive(Clone, Debug)]
pub struct DeltaRule {
    /// Query and key heads.
    pub key_heads: usize,
    /// Value heads, of which i goes with key head i modulo their number.
    pub value_heads: usize,
    /// Width of a query and key head.
    pub key: usize,
    /// Width of a value head.
    pub value: usize,
    /// For each value head: with the input a of its gate, the state is multiplied by exp(rate · softplus(a + bias)).
    pub rates: Vec<f32>,
    /// For each value head.
    pub biases: Vec<f32>,
}

/// What makes a gated MLP of two projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// silu(gate) · up.
    Silu,
    /// gelu(gate) · up, in the form with tanh.
    GeluTanh,
    /// gpt-oss: gate ≤ limit, |up| ≤ limit, gate · σ(alpha · gate) · (up + 1).
    Clamped {
        /// Slope inside the sigmoid.
        alpha: f32,
        /// Bound of both.
        limit: f32,
    },
}

/// A device that computes with matrices of activations: one row per token, in `f32`.
pub trait Ops: Sync {
    /// A matrix on the device.
    type Tensor: Send + Sync;
    /// Rows of all tokens that outlive an operation, where the device can gather from them and add to them.
    type Bank;

    /// Moves rows of `columns` values to the device.
    fn upload(&self, values: Vec<f32>, columns: usize) -> Self::Tensor;
    /// Moves all rows off the device.
    ///
    /// # Errors
    /// If the device could not do something that was asked of it, now or before.
    fn download(&self, x: Self::Tensor) -> Result<Vec<f32>>;

    /// A bank of `rows` rows of `width` zeros.
    ///
    /// # Errors
    /// If there is no room.
    fn bank(&self, space: &Space, rows: usize, width: usize) -> Result<Self::Bank>;
    /// Replaces the bank's rows from `first` on by those of `x`.
    ///
    /// # Errors
    /// If they can't be written.
    fn put(&self, bank: &mut Self::Bank, first: usize, x: Self::Tensor) -> Result<()>;
    /// Some rows of a bank.
    ///
    /// # Errors
    /// If they can't be read.
    fn take(&self, bank: &Self::Bank, rows: Range<usize>) -> Result<Self::Tensor>;
    /// Single rows of a bank, in rising order, one after the other.
    ///
    /// # Errors
    /// If they can't be read.
    fn gather(&self, bank: &Self::Bank, rows: &[usize]) -> Result<Self::Tensor>;
    /// Adds `weights[i]` times row i of `x` to the bank's row `rows[i]`; rows are in rising order, none twice.
    ///
    /// # Errors
    /// If they can't be written.
    fn scatter_add(
        &self,
        bank: &mut Self::Bank,
        rows: &[usize],
        weights: &[f32],
        x: &Self::Tensor,
    ) -> Result<()>;

    /// The rows of `table` for `tokens`: [tokens, columns].
    ///
    /// # Errors
    /// If the weights can't be read.
    fn embed(&self, table: &Linear, tokens: &[u32]) -> Result<Self::Tensor>;
    /// x · wᵀ + bias: [tokens, rows of w].
    ///
    /// # Errors
    /// If the weights can't be read.
    fn linear(&self, x: &Self::Tensor, w: &Linear) -> Result<Self::Tensor>;
    /// A matrix of its own for each head: head h of the result is x_h · w_hᵀ, or x_h · w_h if `transposed`. `x` has the heads
    /// side by side, or is the same for all if it is only as wide as one.
    ///
    /// # Errors
    /// If the weights can't be read.
    fn per_head(&self, x: &Self::Tensor, w: &Stack, transposed: bool) -> Result<Self::Tensor>;

    /// Each run of `group` columns divided by its root mean square, times `gain` (of `group` values) if there is one.
    fn rms_norm(&self, x: &Self::Tensor, group: usize, gain: Option<&[f32]>, eps: f64) -> Self::Tensor;
    /// Turns the heads by their token's position.
    fn rotate(&self, x: &mut Self::Tensor, rotary: &Rotary, sequences: &Sequences);
    /// Attention within each sequence: `q` [tokens, heads · key], `k` [tokens, kv_heads · key], `v` [tokens, kv_heads · value]
    /// give [tokens, heads · value].
    fn attend(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        attention: &Attention,
        sequences: &Sequences,
    ) -> Self::Tensor;
    /// silu of a convolution within each sequence, of each column with its own taps (`taps` [taps, columns], the last for the
    /// token itself).
    fn short_convolution(&self, x: &Self::Tensor, taps: &[f32], sequences: &Sequences) -> Self::Tensor;
    /// The delta rule within each sequence: `q` and `k` [tokens, key_heads · key], `v` [tokens, value_heads · value], the inputs
    /// `a` and `b` of the gates that forget and learn [tokens, value_heads] give [tokens, value_heads · value].
    #[expect(clippy::too_many_arguments, reason = "the recurrence has five inputs")]
    fn delta_rule(
        &self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: &Self::Tensor,
        a: &Self::Tensor,
        b: &Self::Tensor,
        rule: &DeltaRule,
        sequences: &Sequences,
    ) -> Self::Tensor;
    /// The gated product of two projections of the same shape.
    fn gated(&self, gate: Self::Tensor, up: &Self::Tensor, activation: Activation) -> Self::Tensor;

    /// x ← x + y.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// x ← factor · x.
    fn scale(&self, x: &mut Self::Tensor, factor: f32);
    /// Each row times its own factor.
    fn scale_rows(&self, x: &mut Self::Tensor, factors: &[f32]);
    /// x ← cap · tanh(x / cap).
    fn soft_cap(&self, x: &mut Self::Tensor, cap: f32);
    /// x ← x · σ(gate); `gate` has the shape of x, or one column.
    fn sigmoid_gate(&self, x: &mut Self::Tensor, gate: &Self::Tensor);

    /// Some columns of every row.
    fn columns(&self, x: &Self::Tensor, columns: Range<usize>) -> Self::Tensor;
    /// For each of `heads` heads, its columns of `a` and then those of `b`, which is one head that all share if `shared`.
    fn join_heads(&self, a: &Self::Tensor, b: &Self::Tensor, heads: usize, shared: bool) -> Self::Tensor;
    /// Of each of `heads` heads only some of its columns.
    fn head_columns(&self, x: &Self::Tensor, heads: usize, columns: Range<usize>) -> Self::Tensor;
}
