// The product of activations x [tokens, columns] and weights w [rows, columns]: result [tokens, rows] = x · wᵀ. A workgroup makes a tile of
// 64 tokens × 64 rows: 32 columns at a time, both sides are brought to its memory, weights decoded on the way.
struct Params {
    plane1: u32,
    plane2: u32,
    tokens: u32,
    rows: u32,
    columns: u32,
    // Weights of a row in the buffer, a multiple of 8: those beyond the columns are zero.
    w_stride: u32,
    // The first row.
    w_first: u32,
    x_stride: u32,
    x_first: u32,
    result_stride: u32,
    result_first: u32,
    // How far apart the matrices of a batch are: rows of weights, columns of x and of the result.
    w_step: u32,
    x_step: u32,
    result_step: u32,
}
var<immediate> p: Params;

@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

const TILE: u32 = 64u;
const DEPTH: u32 = 32u;

fn plane1() -> u32 {
    return p.plane1;
}

fn plane2() -> u32 {
    return p.plane2;
}

fn activation(token: u32, column: u32, batch: u32) -> T {
    if token >= p.tokens || column >= p.columns {
        return T(0);
    }
    return x[p.x_first + batch * p.x_step + token * p.x_stride + column];
}

// Brings the columns from `first` on, of the tokens and rows of a tile, to where the workgroup multiplies.
fn stage(token: u32, row: u32, first: u32, batch: u32, thread: u32) {
    for (var i = thread; i < TILE * (DEPTH / 4u); i += THREADS) {
        let t = i / (DEPTH / 4u);
        let c = (i % (DEPTH / 4u)) * 4u;
        put_x(t * STRIDE + c, vec4<T>(
            activation(token + t, first + c, batch),
            activation(token + t, first + c + 1u, batch),
            activation(token + t, first + c + 2u, batch),
            activation(token + t, first + c + 3u, batch),
        ));
    }
    for (var i = thread; i < TILE * (DEPTH / 8u); i += THREADS) {
        let r = i / (DEPTH / 8u);
        let c = (i % (DEPTH / 8u)) * 8u;
        var eight = Eight(vec4(0.0), vec4(0.0));
        if row + r < p.rows && first + c < p.w_stride {
            eight = decode8((p.w_first + batch * p.w_step + row + r) * p.w_stride + first + c);
        }
        put_w(r * STRIDE + c, vec4<T>(eight.low), vec4<T>(eight.high));
    }
}
