//! What is done to rows or single elements.

use super::{EXPONENTIAL, Shader};

fn shader(name: &str, text: &str) -> Shader {
    Shader { name: name.to_owned(), text: text.to_owned() }
}

/// A function of an element of x and one of y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// x + y.
    Add,
    /// x · y.
    Multiply,
    /// a · x.
    Scale,
    /// a · tanh(x / a).
    SoftCap,
    /// x · σ(y).
    SigmoidGate,
    /// silu(x) · y.
    Silu,
    /// gelu(x) · y, in the form with tanh.
    GeluTanh,
    /// gpt-oss: x ≤ b, |y| ≤ b, x · σ(a · x) · (y + 1).
    Clamped,
}

/// Which element of y goes with one of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// None: the function needs none.
    None,
    /// The one at the same place.
    Same,
    /// One for each row.
    Row,
    /// One for each column.
    Column,
}

/// x ← f(x, y).
pub fn elementwise(function: Function, other: Other) -> Shader {
    let f = match function {
        Function::Add => "return x + y;",
        Function::Multiply => "return x * y;",
        Function::Scale => "return p.a * x;",
        Function::SoftCap => "return p.a * hyperbolic_tangent(x / p.a);",
        Function::SigmoidGate => "return x * sigmoid(y);",
        Function::Silu => "return x * sigmoid(x) * y;",
        Function::GeluTanh => {
            "return 0.5 * x * (1.0 + hyperbolic_tangent(0.7978845608 * (x + 0.044715 * x * x * x))) * y;"
        }
        Function::Clamped => {
            "let gate = min(x, p.b); return gate * sigmoid(p.a * gate) * (clamp(y, -p.b, p.b) + 1.0);"
        }
    };
    let at = match other {
        Other::None => "return 0u;",
        Other::Same => "return i;",
        Other::Row => "return i / p.columns;",
        Other::Column => "return i % p.columns;",
    };
    let functions = format!("fn f(x: f32, y: f32) -> f32 {{ {f} }}\nfn other(i: u32) -> u32 {{ {at} }}\n");
    Shader {
        name: format!("{function:?} {other:?}"),
        text: [EXPONENTIAL, &functions, include_str!("elementwise.wgsl")].join("\n"),
    }
}

/// Each run of columns divided by its root mean square.
pub fn rms_norm() -> Shader {
    shader("rms_norm", include_str!("rms_norm.wgsl"))
}

/// Rotary position embedding.
pub fn rope() -> Shader {
    shader("rope", include_str!("rope.wgsl"))
}

/// Single rows, one after the other.
pub fn gather() -> Shader {
    shader("gather", include_str!("gather.wgsl"))
}

/// Adds rows to single rows.
pub fn scatter_add() -> Shader {
    shader("scatter_add", include_str!("scatter_add.wgsl"))
}

/// Rows in half precision, with their scales.
pub fn halve() -> Shader {
    let text = format!("enable f16;\n{}", include_str!("halve.wgsl"));
    Shader { name: "halve".to_owned(), text }
}

/// Counts how often it ran.
pub fn count() -> Shader {
    shader("count", include_str!("count.wgsl"))
}

/// Copies heads from matrix to matrix.
pub fn copy() -> Shader {
    shader("copy", include_str!("copy.wgsl"))
}
