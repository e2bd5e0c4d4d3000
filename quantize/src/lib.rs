//! The job: which tensor becomes what, and the streaming pass that does it.
//!
//! - [`mix`], [`scheme`], [`overrides`]: the type of each tensor, by the mixes users know, in compressed-tensors, and by the user's word.
//! - [`lossless`]: the types that hold what is quantized already just as it is; [`proof`]: that the written weights are the source's.
//! - [`budget`], [`placement`], [`speed`]: what a model takes when it runs, where it lies on a machine, how fast it is.
//! - [`measure`](mod@measure): what each type costs each tensor of a model, by a forward pass.
//! - [`allocate`], [`fit`]: the types with which it loses least in so many bytes, and on a machine.
//! - [`calibrate`]: rounding by what the weights are multiplied with.
//! - [`weighted`]: an importance matrix, laid over the tensors of a job.
//! - [`recipe`], [`recipe_file`]: what becomes what, as a file whose hash names the job; one that was edited, read and checked.
//! - [`target`]: the machines that a model is made for.
//! - [`segment`], [`tile`]: the work cut into runs of the source, and those into bounded pieces; [`work`]: their order.
//! - [`plan`], [`job`]: from a checkpoint's headers to the place of every output byte.
//! - [`read`], [`encode`], [`pass`]: source bytes in, encoded rows out, one bounded buffer after the other.
//! - [`run`]: a job from beginning, or from where it was, to its end.
//! - [`journal`], [`store`]: what makes a run restartable, and keeps half-made files from their final names.
//! - [`outlet`]: files that leave while the rest is written.

pub mod allocate;
pub mod budget;
pub mod calibrate;
mod container;
pub mod encode;
pub mod error;
pub mod fit;
pub mod job;
pub mod journal;
mod keep;
pub mod lossless;
pub mod measure;
pub mod mix;
mod moved;
pub mod outlet;
pub mod overrides;
pub mod pass;
pub mod placement;
pub mod plan;
pub mod progress;
pub mod proof;
pub mod read;
pub mod recipe;
pub mod recipe_file;
mod resume;
pub mod run;
pub mod scheme;
pub mod segment;
mod ship;
pub mod speed;
mod stop;
pub mod store;
pub mod target;
pub mod tile;
pub mod weighted;
pub mod work;
mod write;

pub use error::{Error, Result};
pub use recipe::Recipe;
pub use recipe_file::{Given, RecipeFile};
