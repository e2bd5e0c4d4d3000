//! Progress of an evaluation on standard error: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use verify::progress::{Phase, Progress};

use crate::text;

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// Watches an evaluation and shows how far it is.
pub struct Steps {
    terminal: bool,
    now: Mutex<Option<State>>,
}

struct State {
    phase: Phase,
    steps: usize,
    start: Instant,
    last_line: Instant,
    bar: ProgressBar,
}

impl Steps {
    /// A watch on standard error.
    pub fn new() -> Steps {
        Steps { terminal: std::io::stderr().is_terminal(), now: Mutex::new(None) }
    }

    fn with(&self, change: impl FnOnce(&mut Option<State>)) {
        change(&mut self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl State {
    /// `layer 3 of 30, 12 s left`.
    fn line(&self, done: usize) -> String {
        let mut line = format!("{} {done} of {}", self.phase.step(), self.steps);
        if done > 0 && done < self.steps {
            let left = self.start.elapsed().as_secs_f64() * (self.steps - done) as f64 / done as f64;
            line += &format!(", {} left", text::duration(left));
        }
        line
    }
}

impl Progress for Steps {
    fn begin(&self, phase: Phase, steps: usize) {
        let now = Instant::now();
        let bar = if self.terminal {
            let style = ProgressStyle::with_template("{prefix:7} {bar:24} {percent:>3}% {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(steps as u64).with_style(style).with_prefix(phase.name());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        } else {
            ProgressBar::hidden()
        };
        self.with(|state| *state = Some(State { phase, steps, start: now, last_line: now, bar }));
    }

    fn done(&self, steps: usize) {
        self.with(|state| {
            let Some(state) = state else { return };
            if self.terminal {
                state.bar.set_position(steps as u64);
                state.bar.set_message(state.line(steps));
            } else if state.last_line.elapsed() >= EVERY {
                state.last_line = Instant::now();
                eprintln!("{}", state.line(steps));
            }
        });
    }

    fn end(&self) {
        self.with(|state| {
            if let Some(state) = state.take() {
                state.bar.finish_and_clear();
            }
        });
    }
}
