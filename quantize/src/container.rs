//! The containers that are written.

use formats::{awq, compressed_tensors, gptq, linears::Packing};

use crate::budget::Engine;

/// The container to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    /// A GGUF file, or its shards.
    Gguf,
    /// An MLX folder.
    Mlx,
    /// A folder of compressed-tensors.
    CompressedTensors,
    /// A folder of GPTQ's first version.
    Gptq,
    /// A folder of GPTQ's second version.
    GptqV2,
    /// A folder of AWQ.
    Awq,
}

impl Container {
    /// The word for it on the command line and in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Container::Gguf => "gguf",
            Container::Mlx => "mlx",
            Container::CompressedTensors => "compressed-tensors",
            Container::Gptq => "gptq",
            Container::GptqV2 => "gptq-v2",
            Container::Awq => "awq",
        }
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Container::Gguf => "GGUF",
            Container::Mlx => "MLX",
            _ => self.packing().map_or("", |packing| packing.name),
        }
    }

    /// How quantized linears are stored, if the container keeps the checkpoint's own names.
    pub fn packing(self) -> Option<&'static Packing> {
        match self {
            Container::Gguf | Container::Mlx => None,
            Container::CompressedTensors => Some(&compressed_tensors::PACKING),
            Container::Gptq => Some(&gptq::V1),
            Container::GptqV2 => Some(&gptq::V2),
            Container::Awq => Some(&awq::PACKING),
        }
    }

    /// Whether it is a folder of its own.
    pub fn is_folder(self) -> bool {
        self != Container::Gguf
    }

    /// What it is planned for.
    pub fn engine(self) -> Engine {
        match self {
            Container::Gguf => Engine::LlamaCpp,
            Container::Mlx => Engine::Mlx,
            Container::CompressedTensors | Container::Gptq | Container::GptqV2 | Container::Awq => {
                Engine::Vllm
            }
        }
    }
}
