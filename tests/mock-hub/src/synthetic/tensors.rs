//! DeepSeek-R1's tensors: names, types, shapes, in the order of the model.

/// Numbers of `config.json`.
const HIDDEN: u64 = 7168;
const LAYERS: u64 = 61;
const DENSE: u64 = 3;
const INTERMEDIATE: u64 = 18432;
const EXPERT_INTERMEDIATE: u64 = 2048;
const HEADS: u64 = 128;
const Q_RANK: u64 = 1536;
const KV_RANK: u64 = 512;
const NOPE: u64 = 128;
const ROPE: u64 = 64;
const VALUE: u64 = 128;
const EXPERTS: u64 = 256;
const SHARED: u64 = 1;
const VOCABULARY: u64 = 129_280;
const BLOCK: u64 = 128;

/// A type, those of larger alignment first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dtype {
    F32,
    Bf16,
    F8,
}

impl Dtype {
    pub(super) fn size(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
            Dtype::F8 => 1,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::Bf16 => "BF16",
            Dtype::F8 => "F8_E4M3",
        }
    }
}

/// A tensor.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Its place in the model, which no other tensor has.
    pub(super) number: u64,
}

impl Tensor {
    pub(super) fn bytes(&self) -> u64 {
        self.dtype.size() * self.shape.iter().product::<u64>()
    }
}

/// All tensors; those that may not be parted, a weight and its scales, together.
pub(super) fn all() -> Vec<Vec<Tensor>> {
    let mut model = Model::default();
    model.bf16("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
    for number in 0..LAYERS {
        model.layer(number, number);
    }
    model.bf16("model.norm.weight", &[HIDDEN]);
    model.bf16("lm_head.weight", &[VOCABULARY, HIDDEN]);
    // The layer that predicts one token more.
    model.layer(LAYERS, LAYERS);
    let prefix = format!("model.layers.{LAYERS}");
    model.bf16(&format!("{prefix}.enorm.weight"), &[HIDDEN]);
    model.bf16(&format!("{prefix}.hnorm.weight"), &[HIDDEN]);
    model.bf16(&format!("{prefix}.eh_proj.weight"), &[HIDDEN, 2 * HIDDEN]);
    model.bf16(&format!("{prefix}.embed_tokens.weight"), &[VOCABULARY, HIDDEN]);
    model.bf16(&format!("{prefix}.shared_head.norm.weight"), &[HIDDEN]);
    model.bf16(&format!("{prefix}.shared_head.head.weight"), &[VOCABULARY, HIDDEN]);
    model.groups
}

/// Embedding, head and some layers at their real shapes, which are numbered anew; nothing that predicts a token more.
pub(super) fn part(layers: &[u64]) -> Vec<Vec<Tensor>> {
    let mut model = Model::default();
    model.bf16("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
    for (number, &like) in (0..).zip(layers) {
        model.layer(number, like);
    }
    model.bf16("model.norm.weight", &[HIDDEN]);
    model.bf16("lm_head.weight", &[VOCABULARY, HIDDEN]);
    model.groups
}

#[derive(Default)]
struct Model {
    groups: Vec<Vec<Tensor>>,
    count: u64,
}

impl Model {
    fn tensor(&mut self, name: String, dtype: Dtype, shape: &[u64]) -> Tensor {
        self.count += 1;
        Tensor { name, dtype, shape: shape.to_vec(), number: self.count - 1 }
    }

    fn bf16(&mut self, name: &str, shape: &[u64]) {
        let tensor = self.tensor(name.to_owned(), Dtype::Bf16, shape);
        self.groups.push(vec![tensor]);
    }

    fn fp8(&mut self, name: &str, out: u64, inner: u64) {
        let weight = self.tensor(format!("{name}.weight"), Dtype::F8, &[out, inner]);
        let blocks = [out.div_ceil(BLOCK), inner.div_ceil(BLOCK)];
        let scales = self.tensor(format!("{name}.weight_scale_inv"), Dtype::F32, &blocks);
        self.groups.push(vec![weight, scales]);
    }

    fn mlp(&mut self, prefix: &str, intermediate: u64) {
        self.fp8(&format!("{prefix}.gate_proj"), intermediate, HIDDEN);
        self.fp8(&format!("{prefix}.up_proj"), intermediate, HIDDEN);
        self.fp8(&format!("{prefix}.down_proj"), HIDDEN, intermediate);
    }

    /// A layer of the shapes that layer `like` has.
    fn layer(&mut self, number: u64, like: u64) {
        let prefix = format!("model.layers.{number}");
        let attention = format!("{prefix}.self_attn");
        self.bf16(&format!("{prefix}.input_layernorm.weight"), &[HIDDEN]);
        self.bf16(&format!("{prefix}.post_attention_layernorm.weight"), &[HIDDEN]);
        self.fp8(&format!("{attention}.q_a_proj"), Q_RANK, HIDDEN);
        self.bf16(&format!("{attention}.q_a_layernorm.weight"), &[Q_RANK]);
        self.fp8(&format!("{attention}.q_b_proj"), HEADS * (NOPE + ROPE), Q_RANK);
        self.fp8(&format!("{attention}.kv_a_proj_with_mqa"), KV_RANK + ROPE, HIDDEN);
        self.bf16(&format!("{attention}.kv_a_layernorm.weight"), &[KV_RANK]);
        self.fp8(&format!("{attention}.kv_b_proj"), HEADS * (NOPE + VALUE), KV_RANK);
        self.fp8(&format!("{attention}.o_proj"), HIDDEN, HEADS * VALUE);
        let mlp = format!("{prefix}.mlp");
        if like < DENSE {
            self.mlp(&mlp, INTERMEDIATE);
            return;
        }
        self.bf16(&format!("{mlp}.gate.weight"), &[EXPERTS, HIDDEN]);
        let bias = self.tensor(format!("{mlp}.gate.e_score_correction_bias"), Dtype::F32, &[EXPERTS]);
        self.groups.push(vec![bias]);
        for expert in 0..EXPERTS {
            self.mlp(&format!("{mlp}.experts.{expert}"), EXPERT_INTERMEDIATE);
        }
        self.mlp(&format!("{mlp}.shared_experts"), EXPERT_INTERMEDIATE * SHARED);
    }
}
