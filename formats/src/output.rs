//! The tensors of a converted model: what each is called, what it is for, and from which parts of which source tensors it
//! is put together. A family's file writes this list; the pass that executes it knows no family.

use std::ops::Range;

use crate::tensor::TensorId;

/// What a weight does in the model: the mixes choose types by it, the report groups by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Token embeddings.
    Embedding,
    /// The output head.
    Output,
    /// Norm gains, biases and every other vector.
    Vector,
    /// A matrix without a role of its own in the mixes.
    Other,
    /// What a mixture's router adds to its scores before choosing: F32 in every container.
    RouterBias,
    /// The logarithm of a state's decay: F32 in every container.
    Decay,
    /// A mixture's router.
    Router,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Query, key and value in one.
    AttnQkv,
    /// Output projection of attention.
    AttnOutput,
    /// MLA: down-projection to the query's latent.
    AttnQA,
    /// MLA: up-projection from the query's latent.
    AttnQB,
    /// MLA: down-projection to the shared key/value latent and the rotary key.
    AttnKvA,
    /// MLA: the key half of `kv_b_proj`, transposed per head.
    AttnKB,
    /// MLA: the value half of `kv_b_proj`.
    AttnVB,
    /// Gate of a dense MLP.
    FfnGate,
    /// Up projection of a dense MLP.
    FfnUp,
    /// Down projection of a dense MLP.
    FfnDown,
    /// Gate of the shared expert.
    SharedGate,
    /// Up projection of the shared expert.
    SharedUp,
    /// Down projection of the shared expert.
    SharedDown,
    /// Gates of the routed experts, stacked; where gates and up-projections are one tensor, both.
    ExpertGate,
    /// Up projections of the routed experts, stacked.
    ExpertUp,
    /// Down projections of the routed experts, stacked.
    ExpertDown,
}

impl Class {
    /// Whether it is a matrix of a mixture's routed experts, of which a token uses a few.
    pub fn is_routed_expert(self) -> bool {
        matches!(self, Class::ExpertGate | Class::ExpertUp | Class::ExpertDown)
    }

    /// The name for tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Class::Embedding => "embedding",
            Class::Output => "output",
            Class::Vector => "vector",
            Class::Other => "other",
            Class::RouterBias => "router_bias",
            Class::Decay => "decay",
            Class::Router => "router",
            Class::AttnQ => "attn_q",
            Class::AttnK => "attn_k",
            Class::AttnV => "attn_v",
            Class::AttnQkv => "attn_qkv",
            Class::AttnOutput => "attn_output",
            Class::AttnQA => "attn_q_a",
            Class::AttnQB => "attn_q_b",
            Class::AttnKvA => "attn_kv_a",
            Class::AttnKB => "attn_k_b",
            Class::AttnVB => "attn_v_b",
            Class::FfnGate => "ffn_gate",
            Class::FfnUp => "ffn_up",
            Class::FfnDown => "ffn_down",
            Class::SharedGate => "shared_gate",
            Class::SharedUp => "shared_up",
            Class::SharedDown => "shared_down",
            Class::ExpertGate => "expert_gate",
            Class::ExpertUp => "expert_up",
            Class::ExpertDown => "expert_down",
        }
    }
}

/// How a part's matrix (rows × columns, as f32) becomes rows of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Map {
    /// Row by row as they are. Such a part may be cut into tiles anywhere.
    Identity,
    /// Columns become rows. The part is taken whole.
    Transpose,
    /// The two halves of the rows are interleaved (output row 2i = row i, 2i + 1 = row n/2 + i): one head's rotary
    /// dimensions from Hugging Face's order to the one of GGUF's `llama`. The part is taken whole.
    InterleaveHalves,
    /// 1 is added to every value: Gemma's checkpoints store how far a norm's gain is from 1. Such a part may be cut too.
    PlusOne,
    /// Rows 0, 2, 4, … alone: one of two projections whose rows alternate. The part is taken whole.
    EvenRows,
    /// Rows 1, 3, 5, … alone. The part is taken whole.
    OddRows,
    /// Columns 0, 2, 4, … become rows. The part is taken whole.
    EvenColumns,
    /// Columns 1, 3, 5, … become rows. The part is taken whole.
    OddColumns,
    /// Minus the exponential of every value: what Mamba's line of models calls `A_log`. Such a part may be cut too.
    NegExp,
    /// Columns are taken in blocks of `width`, and of the `groups` that these lie in first all first ones, then all second ones,
    /// and so on. Such a part may be cut too.
    DealColumns {
        /// Number of groups: divides the number of blocks.
        groups: u32,
        /// Columns of a block.
        width: u32,
    },
}

impl Map {
    /// Which row of the source, which has `all`, a row of the result is, if each is one of the source's as it is.
    pub fn source_row(self, row: u64, all: u64) -> Option<u64> {
        match self {
            Map::Identity => Some(row),
            Map::InterleaveHalves => Some(row / 2 + row % 2 * (all / 2)),
            Map::EvenRows => Some(2 * row),
            Map::OddRows => Some(2 * row + 1),
            Map::Transpose
            | Map::PlusOne
            | Map::EvenColumns
            | Map::OddColumns
            | Map::NegExp
            | Map::DealColumns { .. } => None,
        }
    }

    /// Whether each row of the result is made of one row of the source, in order, so that the part may be cut into tiles anywhere.
    pub fn is_row_wise(self) -> bool {
        matches!(self, Map::Identity | Map::PlusOne | Map::NegExp | Map::DealColumns { .. })
    }
}

/// Rows of one source tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The source tensor, seen as a matrix of `columns` columns.
    pub source: TensorId,
    /// Length of a row: the tensor's last dimension, or 1 where the elements of a vector are moved one by one.
    pub columns: u64,
    /// Which rows.
    pub rows: Range<u64>,
    /// What happens to them.
    pub map: Map,
}

impl Part {
    /// Rows and columns of what the part becomes.
    pub fn output_shape(&self) -> (u64, u64) {
        let rows = self.rows.end - self.rows.start;
        match self.map {
            Map::Identity | Map::PlusOne | Map::NegExp | Map::DealColumns { .. } | Map::InterleaveHalves => {
                (rows, self.columns)
            }
            Map::Transpose => (self.columns, rows),
            Map::EvenRows | Map::OddRows => (rows / 2, self.columns),
            Map::EvenColumns | Map::OddColumns => (self.columns / 2, rows),
        }
    }

    /// The part that becomes only some of the rows (counted from the first that this one becomes), unless every row needs all
    /// of the source's.
    pub fn cut(&self, rows: Range<u64>) -> Option<Part> {
        let step = match self.map {
            Map::Identity | Map::PlusOne | Map::NegExp | Map::DealColumns { .. } => 1,
            Map::EvenRows | Map::OddRows => 2,
            Map::Transpose | Map::InterleaveHalves | Map::EvenColumns | Map::OddColumns => return None,
        };
        let rows = self.rows.start + step * rows.start..self.rows.start + step * rows.end;
        Some(Part { rows, ..self.clone() })
    }

    /// Number of weights that the part becomes.
    pub fn weights(&self) -> u64 {
        let (rows, columns) = self.output_shape();
        rows * columns
    }
}

/// What an output tensor's rows are made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Rows of source tensors, one part after the other.
    Parts(Vec<Part>),
    /// Values computed from the configuration, row-major (GGUF's `rope_freqs.weight`).
    Values(Vec<f32>),
}

/// One tensor of the converted model.
#[derive(Clone, Debug)]
pub struct OutputTensor {
    /// The container's name for it, without what the container appends for its planes (GGUF: the full name; MLX: the module
    /// path with `.weight` left out where the tensor can be quantized).
    pub name: String,
    /// Row-major, outermost dimension first.
    pub shape: Vec<u64>,
    /// What it is for.
    pub class: Class,
    /// The block it belongs to, if any.
    pub layer: Option<u32>,
    /// Whether the consumer can run it in a quantized format. What can't is stored in full precision (GGUF: F32; MLX: the
    /// model's own type).
    pub quantizable: bool,
    /// Where its rows come from.
    pub content: Content,
}

impl OutputTensor {
    /// Length of a row.
    pub fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows when all dimensions but the last are flattened.
    pub fn rows(&self) -> u64 {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
