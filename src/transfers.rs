//! Progress of what goes over the network, on standard error: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hub::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::text;

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// Watches transfers.
pub struct Transfers {
    /// Whether another watch shows how far the work is.
    quiet: bool,
    terminal: bool,
    now: Mutex<State>,
}

struct State {
    what: String,
    total: u64,
    there: u64,
    moved: u64,
    start: Instant,
    last_line: Instant,
    bar: ProgressBar,
}

impl Transfers {
    /// A watch on standard error.
    pub fn new() -> Transfers {
        let now = Instant::now();
        let state = State {
            what: String::new(),
            total: 0,
            there: 0,
            moved: 0,
            start: now,
            last_line: now,
            bar: ProgressBar::hidden(),
        };
        Transfers { quiet: false, terminal: std::io::stderr().is_terminal(), now: Mutex::new(state) }
    }

    /// One that shows notes alone, beside a watch of the work that waits for the bytes.
    pub fn quiet() -> Transfers {
        Transfers { quiet: true, ..Transfers::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn line(&self) -> String {
        let rate = self.moved as f64 / self.start.elapsed().as_secs_f64().max(1e-3);
        let done = (self.there + self.moved).min(self.total);
        let mut line =
            format!("{} of {}, {}/s", text::bytes(done), text::bytes(self.total), text::bytes(rate as u64));
        if rate > 0.0 && done < self.total {
            line += &format!(", {} left", text::duration((self.total - done) as f64 / rate));
        }
        line
    }
}

impl Progress for Transfers {
    fn begin(&self, what: &str, bytes: u64, there: u64) {
        let mut state = self.state();
        let now = Instant::now();
        let bar = if self.terminal && !self.quiet {
            let style = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3}% {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(bytes).with_style(style).with_prefix(what.to_owned());
            bar.set_position(there);
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        } else {
            ProgressBar::hidden()
        };
        let what = what.to_owned();
        *state = State { what, total: bytes, there, moved: 0, start: now, last_line: now, bar };
    }

    fn advance(&self, bytes: u64) {
        let mut state = self.state();
        state.moved += bytes;
        if self.quiet {
            return;
        }
        if self.terminal {
            state.bar.set_position(state.there + state.moved);
            state.bar.set_message(state.line());
        } else if state.last_line.elapsed() >= EVERY {
            state.last_line = Instant::now();
            eprintln!("{}: {}", state.what, state.line());
        }
    }

    fn end(&self) {
        self.state().bar.finish_and_clear();
    }

    fn note(&self, line: &str) {
        let state = self.state();
        state.bar.suspend(|| eprintln!("{line}"));
    }
}
