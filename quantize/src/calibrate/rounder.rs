//! [`Rounder`]: rounds every weight the moment before it is first multiplied, by what it is about to be multiplied with. The
//! product is then taken with what was rounded and written, so all that follows sees the damage done so far.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};

use formats::output::Class;
use formats::rows::{decode, rearrange};
use formats::{Content, Dtype, OutputTensor};
use kernels::matrix::Matrix;
use kernels::stats::summarize;
use kernels::{Format, Isa};
use rayon::prelude::*;
use verify::tap::Tap;
use verify::weights::{Linear, Weights};

use super::Rounding;
use super::imatrix::Importance;
use super::moments::{Inputs, Moments, fingerprint};
use super::places::{Place, places};
use super::report::Rounded;
use super::round::{Made, Metric, round};
use crate::encode::Stats;
use crate::error::{Error, Result};
use crate::journal::Entry;
use crate::progress::{Amount, Progress};
use crate::run::Session;
use crate::write::entry;

/// Tokens at whose weight a rarely chosen expert's inputs are drawn towards those of all tokens.
const SHRINKAGE: f32 = 128.0;

/// An output that is written, and what of it is.
struct Side<'a> {
    session: Session<'a>,
    /// For each tensor of the graph.
    places: Vec<Vec<Place>>,
    /// For each output tensor: whether it was whole when this run began.
    whole: Vec<bool>,
    /// Output tensors of which some rows are rounded.
    open: HashMap<usize, Open>,
    /// What became of those that are whole.
    report: Vec<Rounded>,
}

/// An output tensor of which some rows are rounded.
#[derive(Default)]
struct Open {
    rows: Vec<Range<u64>>,
    stats: Stats,
    /// The mean importance of the columns over the rounds so far, for rows that nothing is known of.
    importance: Vec<f32>,
    rounded: Rounded,
}

/// What is known of the inputs in work.
#[derive(Default)]
struct Known {
    /// The inputs of the last product, by their fingerprint.
    last: Option<(u64, Metric)>,
    /// The moments of what a layer's router gets: the inputs of all its experts together.
    routed: Option<Moments>,
}

/// The weights of the last product, as they were written.
struct Current {
    tensor: usize,
    rows: Range<usize>,
    columns: usize,
    values: Vec<f32>,
}

/// The tap of a calibrated pass.
pub(crate) struct Rounder<'a, 's> {
    weights: &'a Weights,
    rounding: Rounding,
    sides: Mutex<Vec<Side<'s>>>,
    known: Mutex<Known>,
    current: RwLock<Option<Current>>,
    seen: Option<&'a Mutex<Importance>>,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl<'a, 's> Rounder<'a, 's> {
    pub fn new(
        weights: &'a Weights,
        sessions: Vec<Session<'s>>,
        rounding: Rounding,
        seen: Option<&'a Mutex<Importance>>,
        progress: &'a dyn Progress,
        cancel: &'a AtomicBool,
    ) -> Rounder<'a, 's> {
        let side = |session: Session<'s>| {
            let done = session.done();
            let whole =
                session.job.outputs.iter().map(|output| done.contains(output.name.as_str())).collect();
            Side {
                places: places(weights, session.job),
                whole,
                open: HashMap::new(),
                report: Vec::new(),
                session,
            }
        };
        Rounder {
            weights,
            rounding,
            sides: Mutex::new(sessions.into_iter().map(side).collect()),
            known: Mutex::default(),
            current: RwLock::default(),
            seen,
            progress,
            cancel,
        }
    }

    /// The sessions, to be completed, each with what was done to its tensors.
    pub fn into_sessions(self) -> Vec<(Session<'s>, Vec<Rounded>)> {
        let sides = self.sides.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        sides.into_iter().map(|side| (side.session, side.report)).collect()
    }

    /// Rounds rows of a tensor of the graph by what they are multiplied with.
    fn weigh(&self, x: Matrix, w: &Linear) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(self.interrupted());
        }
        let rows = w.rows.start as u64..w.rows.end as u64;
        let tensor = &self.weights.tensors[w.tensor];
        if let Some(seen) = self.seen {
            lock(seen).gather(x, tensor, &w.rows);
        }
        let mut known = lock(&self.known);
        let mut sides = lock(&self.sides);
        let due: Vec<_> = sides.iter().map(|side| side.due(w.tensor, &rows)).collect();
        if due.iter().any(|due| !due.is_empty()) {
            let metric = known.of(x, tensor, self.rounding);
            for (side, due) in sides.iter_mut().zip(due) {
                due.into_iter().try_for_each(|(output, rows)| self.round(side, output, rows, metric))?;
            }
        }
        if tensor.class == Class::Router {
            known.routed = Some(Inputs::of(x).fitted);
        }
        let current = self.written(&sides[0], w)?;
        *self.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = current;
        Ok(())
    }

    /// Rounds rows of a tensor that the graph does not multiply in the usual way, by moments known otherwise.
    pub fn weigh_by(&self, tensor: usize, moments: &Moments) -> Result<()> {
        let rows = 0..self.weights.tensors[tensor].rows();
        let metric = Metric::new(Inputs::without_held_out(moments.clone()), self.rounding);
        for side in lock(&self.sides).iter_mut() {
            for (output, rows) in side.due(tensor, &rows) {
                self.round(side, output, rows, &metric)?;
            }
        }
        Ok(())
    }

    fn interrupted(&self) -> Error {
        let partial = lock(&self.sides)[0].session.job.destination.partial();
        Error::Interrupted { partial }
    }

    /// Rounds and writes rows of an output tensor.
    fn round(&self, side: &mut Side, index: usize, rows: Range<u64>, metric: &Metric) -> Result<()> {
        let (made, stats) = side.round(index, rows.clone(), metric)?;
        let written = made.planes.iter().map(|plane| plane.len() as u64).sum();
        let open = side.open.entry(index).or_default();
        open.add(rows, metric, &made.rounded);
        open.stats.add(&stats);
        self.progress.advance(Amount { read: 0, written, weights: made.decoded.len() as u64 });
        Ok(())
    }

    /// What was written of the weights of a product.
    fn written(&self, side: &Side, w: &Linear) -> Result<Option<Current>> {
        let rows = w.rows.start as u64..w.rows.end as u64;
        let job = side.session.job;
        let mut values = vec![0.0; w.rows.len() * w.columns];
        let places = side.places[w.tensor].iter().filter_map(|place| place.within(&rows));
        let places: Vec<Place> = places.filter(|place| side.is_written(place)).collect();
        if places.is_empty() {
            return Ok(None);
        }
        // A place whose rows can't be told apart may be more than what is asked for.
        let asked = |place: &Place| place.rows.start.max(rows.start)..place.rows.end.min(rows.end);
        let there: u64 = places.iter().map(asked).map(|both| both.end - both.start).sum();
        if there < rows.end - rows.start {
            self.weights.rows(w.tensor, w.rows.clone(), &mut values)?;
        }
        for place in places {
            let format = job.formats[place.output];
            let mut decoded = side.get(place.output, place.output_rows(), format)?;
            if place.map != formats::output::Map::Identity {
                let mut mapped = vec![0.0; decoded.len()];
                rearrange(place.map, &decoded, w.columns, &mut mapped);
                decoded = mapped;
            }
            let both = asked(&place);
            let from = (both.start - place.rows.start) as usize * w.columns;
            let to = (both.start - rows.start) as usize * w.columns;
            let count = (both.end - both.start) as usize * w.columns;
            values[to..to + count].copy_from_slice(&decoded[from..from + count]);
        }
        Ok(Some(Current { tensor: w.tensor, rows: w.rows.clone(), columns: w.columns, values }))
    }

    /// Finishes the tensors of which all or some rows are rounded: rows that no token reached are rounded by the mean importance
    /// of the others, and all goes into the journal.
    pub fn settle(&self) -> Result<()> {
        *lock(&self.known) = Known::default();
        for side in lock(&self.sides).iter_mut() {
            let mut open: Vec<(usize, Open)> = side.open.drain().collect();
            open.sort_by_key(|(output, _)| *output);
            let mut entries = Vec::new();
            for (index, mut open) in open {
                let job = side.session.job;
                let output = &job.outputs[index];
                let metric = Metric::importance(std::mem::take(&mut open.importance));
                for rows in open.missing(output.rows()) {
                    open.stats.add(&side.round(index, rows.clone(), &metric)?.1);
                    open.rounded.unseen_rows += rows.end - rows.start;
                }
                entries.push(side.entry(index, &open.stats)?);
                side.whole[index] = true;
                open.rounded.tensor = output.name.clone();
                open.rounded.format = job.formats[index].name;
                side.report.push(open.rounded);
            }
            if !entries.is_empty() {
                side.session.keep(entries)?;
            }
        }
        Ok(())
    }
}

impl Tap for Rounder<'_, '_> {
    fn product(&self, x: Matrix<'_>, w: &Linear) -> verify::Result<()> {
        self.weigh(x, w).map_err(|error| verify::Error::Tap(Box::new(error)))
    }

    fn rows(&self, tensor: usize, rows: Range<usize>, out: &mut [f32]) -> verify::Result<()> {
        let current = self.current.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(current) = current.as_ref()
            && current.tensor == tensor
            && current.rows.start <= rows.start
            && rows.end <= current.rows.end
        {
            let first = (rows.start - current.rows.start) * current.columns;
            out.copy_from_slice(&current.values[first..first + out.len()]);
            return Ok(());
        }
        self.weights.rows(tensor, rows, out)
    }
}

impl Known {
    /// What is known of `x`, which `tensor` is about to be multiplied with.
    fn of(&mut self, x: Matrix, tensor: &OutputTensor, rounding: Rounding) -> &Metric {
        let print = fingerprint(x);
        let same = self.last.take().filter(|(last, _)| *last == print);
        let made = || {
            let mut inputs = Inputs::of(x);
            let routed = self.routed.as_ref().filter(|all| all.columns == x.columns);
            // What goes into the down projections is nothing that the router sees.
            if matches!(tensor.class, Class::ExpertGate | Class::ExpertUp)
                && let Some(all) = routed
            {
                inputs.fitted.shrink(all, SHRINKAGE);
            }
            (print, Metric::new(inputs, rounding))
        };
        let last = same.unwrap_or_else(made);
        &self.last.insert(last).1
    }
}

impl Side<'_> {
    /// Output tensors and their rows that hold rows of a tensor of the graph and are still to be rounded.
    fn due(&self, tensor: usize, rows: &Range<u64>) -> Vec<(usize, Range<u64>)> {
        let job = self.session.job;
        let mut due: Vec<(usize, Range<u64>)> = Vec::new();
        for place in self.places[tensor].iter().filter_map(|place| place.within(rows)) {
            let (output, format) = (&job.outputs[place.output], job.formats[place.output]);
            if format.block == 1 || same_blocks(job, output, format) || self.is_written(&place) {
                continue;
            }
            // Heads that have places of their own are rounded together.
            let rows = place.output_rows();
            match due.last_mut() {
                Some((last, done)) if *last == place.output && done.end == rows.start => done.end = rows.end,
                _ => due.push((place.output, rows)),
            }
        }
        due
    }

    /// Whether the rows are written.
    fn is_written(&self, place: &Place) -> bool {
        let rows = place.output_rows();
        self.whole[place.output]
            || self.open.get(&place.output).is_some_and(|open| {
                open.rows.iter().any(|done| done.start <= rows.start && rows.end <= done.end)
            })
    }

    /// Offsets and lengths of some rows' bytes within each plane.
    fn ranges(&self, output: usize, rows: &Range<u64>) -> impl Iterator<Item = (usize, u64, usize)> {
        let job = self.session.job;
        let (format, columns) = (job.formats[output], job.outputs[output].columns());
        let blocks = columns / format.block as u64;
        let rows = rows.clone();
        format.planes.iter().enumerate().map(move |(plane, &bytes)| {
            let per_row = blocks * bytes as u64;
            (plane, rows.start * per_row, ((rows.end - rows.start) * per_row) as usize)
        })
    }

    /// Rounds and writes rows of an output tensor.
    fn round(&self, index: usize, rows: Range<u64>, metric: &Metric) -> Result<(Made, Stats)> {
        let (job, isa) = (self.session.job, Isa::detect());
        let (output, format) = (&job.outputs[index], job.formats[index]);
        let mut values = vec![0.0; ((rows.end - rows.start) * output.columns()) as usize];
        decode_all(self, output, rows.clone(), &mut values)?;
        let nonfinite = summarize(isa, &values).nonfinite;
        if nonfinite > 0 {
            values.iter_mut().filter(|value| !value.is_finite()).for_each(|value| *value = 0.0);
        }
        let mut made = round(format, metric, &values)?;
        let stats = Stats::of(isa, &mut values, &mut made.decoded, nonfinite);
        stats.check(output, format, job.recipe.allow_nonfinite)?;
        self.put(index, rows, &made.planes)?;
        Ok((made, stats))
    }

    fn put(&self, output: usize, rows: Range<u64>, planes: &[Vec<u8>]) -> Result<()> {
        for ((plane, offset, _), bytes) in self.ranges(output, &rows).zip(planes) {
            self.session.store.write_rows(output, plane, offset, bytes)?;
        }
        Ok(())
    }

    /// Rows as they were written.
    fn get(&self, output: usize, rows: Range<u64>, format: &'static Format) -> Result<Vec<f32>> {
        let mut planes = Vec::new();
        for (plane, offset, len) in self.ranges(output, &rows) {
            let mut bytes = vec![0; len];
            self.session.store.read_rows(output, plane, offset, &mut bytes)?;
            planes.push(bytes);
        }
        let columns = self.session.job.outputs[output].columns();
        let mut values = vec![0.0; ((rows.end - rows.start) * columns) as usize];
        let step = 64 * columns as usize;
        values.par_chunks_mut(step.max(1)).enumerate().for_each(|(i, out)| {
            let blocks = i * step / format.block..(i * step + out.len()) / format.block;
            let planes: Vec<&[u8]> = planes
                .iter()
                .zip(format.planes)
                .map(|(plane, bytes)| &plane[blocks.start * bytes..blocks.end * bytes])
                .collect();
            (format.decode)(format, Isa::detect(), &planes, out);
        });
        Ok(values)
    }

    /// The journal's line for a tensor that is written.
    fn entry(&self, index: usize, stats: &Stats) -> Result<Entry> {
        let job = self.session.job;
        let placements = &job.layout.planes[index];
        let hashes: Vec<String> =
            placements.iter().map(|at| self.session.store.hash(*at)).collect::<Result<_>>()?;
        Ok(entry(&job.outputs[index], &job.layout, placements, hashes, stats))
    }
}

impl Open {
    /// Notes that some rows are rounded.
    fn add(&mut self, rows: Range<u64>, metric: &Metric, rounded: &Rounded) {
        if self.importance.is_empty() {
            self.importance = vec![0.0; metric.importance.len()];
        }
        self.importance.iter_mut().zip(&metric.importance).for_each(|(sum, value)| *sum += value);
        self.rounded.add(rounded);
        match self.rows.last_mut() {
            Some(last) if last.end == rows.start => last.end = rows.end,
            _ => self.rows.push(rows),
        }
    }

    /// The rows that are not rounded.
    fn missing(&self, rows: u64) -> Vec<Range<u64>> {
        let mut done = self.rows.clone();
        done.sort_by_key(|rows| rows.start);
        let mut next = 0;
        let mut missing = Vec::new();
        for done in done.iter().chain([&(rows..rows)]) {
            if next < done.start {
                missing.push(next..done.start);
            }
            next = next.max(done.end);
        }
        missing
    }
}

/// Whether the source has the very blocks that are asked for: they are copied by the streaming pass.
fn same_blocks(job: &crate::job::Job, output: &OutputTensor, format: &'static Format) -> bool {
    let Content::Parts(parts) = &output.content else { return false };
    parts.iter().any(|part| job.source.meta(part.source).dtype == Dtype::Block(format))
}

/// Decodes rows of an output tensor from its source, on all cores.
fn decode_all(side: &Side, output: &OutputTensor, rows: Range<u64>, values: &mut [f32]) -> Result<()> {
    let job = side.session.job;
    let columns = output.columns();
    // What can't be cut is read whole by everyone who needs some of it.
    let row_wise = match &output.content {
        Content::Parts(parts) => parts.iter().all(|part| part.map.is_row_wise()),
        Content::Values(_) => true,
    };
    let step = if row_wise { ((1 << 16) / columns.max(1)).max(1) } else { (rows.end - rows.start).max(1) };
    values.par_chunks_mut((step * columns).max(1) as usize).enumerate().try_for_each(|(i, out)| {
        let first = rows.start + i as u64 * step;
        let rows = first..rows.end.min(first + step);
        decode(&*job.source, &job.scales, output, rows, Isa::detect(), out)
    })?;
    Ok(())
}
