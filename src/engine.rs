//! The program that is to run a model: which, and how.

use std::path::Path;

use anyhow::Result;
use quantize::{
    budget::Engine,
    error::Error,
    fit::{Fit, Wish},
    plan::Container,
    target::Target,
};

use crate::{args, plan_verb::shell};

/// What is to run it: as the user says by its name or by the container, or what the target has.
pub fn chosen(args: &args::Fit, target: Option<&Target>) -> Result<Engine> {
    let container = args.to.map(Container::from);
    match (args.engine.map(Engine::from), container) {
        (Some(engine), Some(container)) if engine.container() != container => Err(Error::Usage(format!(
            "--engine {} loads {}, not {}: leave --to away",
            engine.name(),
            engine.container().name(),
            container.name()
        ))
        .into()),
        (Some(engine), _) => Ok(engine),
        (None, Some(container)) if container.engine().container() != container => Err(Error::Usage(format!(
            "types are chosen for gguf, mlx and compressed-tensors; `quantize --to {}` takes one scheme for all",
            container.name()
        ))
        .into()),
        (None, Some(container)) => Ok(container.engine()),
        (None, None) => {
            let has_mlx_alone = target
                .is_some_and(|target| target.engines.iter().all(|engine| engine.program() == Engine::Mlx));
            Ok(if has_mlx_alone { Engine::Mlx } else { Engine::LlamaCpp })
        }
    }
}

/// The command that runs the model, at `path`, on its target.
pub fn command(path: &Path, wish: &Wish, fit: &Fit) -> String {
    let name = path.display();
    let command = match wish.run.engine {
        Engine::LlamaCpp => format!("llama-server -m {name} {}", shell(&fit.flags)),
        Engine::Mlx => format!("mlx_lm.generate --model {name} --prompt 'Hello' --max-tokens 256"),
        Engine::Vllm => format!("vllm serve {name} {}", shell(&fit.flags)),
    };
    command.trim_end().to_owned()
}
