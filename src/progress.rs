//! Progress on standard error: a bar on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use quantize::progress::{Amount, Phase, Progress};

use crate::text;

/// Between two plain lines.
const EVERY: Duration = Duration::from_secs(10);

/// Watches a job and shows how far it is.
pub struct Watch {
    terminal: bool,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    total: Amount,
    earlier: Amount,
    now: Amount,
    start: Instant,
    last_line: Instant,
    bar: ProgressBar,
}

impl Watch {
    /// A watch on standard error.
    pub fn new() -> Watch {
        let now = Instant::now();
        Watch {
            terminal: std::io::stderr().is_terminal(),
            state: Mutex::new(State {
                phase: Phase::Quantizing,
                total: Amount::default(),
                earlier: Amount::default(),
                now: Amount::default(),
                start: now,
                last_line: now,
                bar: ProgressBar::hidden(),
            }),
        }
    }
}

impl State {
    /// Bytes are counted: read ones while quantizing, written ones while checking.
    fn position(&self) -> (u64, u64) {
        match self.phase {
            Phase::Checking => (self.now.written, self.total.written),
            Phase::Quantizing | Phase::Calibrating | Phase::Measuring | Phase::Comparing => {
                (self.now.weights, self.total.weights)
            }
        }
    }

    fn line(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let (done, total) = self.position();
        let left = if done > 0 { (total - done.min(total)) as f64 * seconds / done as f64 } else { 0.0 };
        match self.phase {
            Phase::Checking => {
                format!("checked {} of {}", text::bytes(done), text::bytes(total))
            }
            Phase::Calibrating => format!(
                "rounded {} of {} weights, {} left",
                text::count(self.now.weights),
                text::count(self.total.weights),
                text::duration(left),
            ),
            Phase::Measuring => {
                format!("measured {done} of {total} layers, {} left", text::duration(left))
            }
            Phase::Comparing => format!(
                "compared {} of {} weights, {} left",
                text::count(done),
                text::count(total),
                text::duration(left),
            ),
            Phase::Quantizing => format!(
                "read {} of {}, wrote {} of {}, {} weights/s, {} left",
                text::bytes(self.now.read),
                text::bytes(self.total.read),
                text::bytes(self.earlier.written + self.now.written),
                text::bytes(self.total.written),
                text::count((self.now.weights as f64 / seconds) as u64),
                text::duration(left),
            ),
        }
    }
}

impl Progress for Watch {
    fn begin(&self, phase: Phase, total: Amount, earlier: Amount) {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        let bar = if self.terminal {
            let label = match phase {
                Phase::Checking => "checking   ",
                Phase::Calibrating => "calibrating",
                Phase::Comparing => "comparing  ",
                Phase::Quantizing => "quantizing ",
                Phase::Measuring => "measuring  ",
            };
            let style = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3}% {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style).with_prefix(label);
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        } else {
            ProgressBar::hidden()
        };
        *state = State { phase, total, earlier, now: Amount::default(), start: now, last_line: now, bar };
        state.bar.set_length(state.position().1);
    }

    fn advance(&self, more: Amount) {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.now.read += more.read;
        state.now.written += more.written;
        state.now.weights += more.weights;
        if self.terminal {
            state.bar.set_position(state.position().0);
            state.bar.set_message(state.line());
        } else if state.last_line.elapsed() >= EVERY {
            state.last_line = Instant::now();
            eprintln!("{}", state.line());
        }
    }

    fn end(&self) {
        let state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        state.bar.finish_and_clear();
    }
}
