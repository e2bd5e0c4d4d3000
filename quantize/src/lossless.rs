//! The format `lossless`: each quantized tensor gets the format of the container that holds its weights just as they are, the same codes
//! and the same scales, and what isn't quantized stays so.
//!
//! Whether a format holds them depends on their numbers too: a zero point times a scale may be no half float. So the scales of the whole
//! source are looked at before anything is planned (the codes, where they lie apart, are not read).

use formats::{
    Content, Dtype, OutputTensor, Part, TensorSource,
    output::{Class, Map},
    rows,
    scales::Scales,
};
use kernels::{
    Format, Isa, float, mlx_affine,
    moves::{is_decoded_alike, may_move, transcode},
    stats::damage,
    w4a16, w4a16_asym,
};
use rayon::prelude::*;

use crate::{
    encode::round,
    error::{Error, Result},
    mix::Choices,
    moved::quantized,
};

/// What it is called where formats are named.
pub const LOSSLESS: &str = "lossless";

/// Weights that are looked at at a time.
const AT_ONCE: u64 = 1 << 20;

/// Rows by which the damage of quantizing again is told.
const SAMPLED: u64 = 32;

/// What a container offers.
pub(crate) struct Offer<'a> {
    /// Its name.
    pub container: &'static str,
    /// Its formats.
    pub formats: &'a [&'static Format],
    /// Whether its consumers want one format for all.
    pub one_for_all: bool,
    /// What the number of a tensor's rows must be a multiple of.
    pub rows: u64,
}

/// The format of each tensor; `plain` gives that of one whose source isn't quantized.
///
/// # Errors
/// [`Error::NotHeld`] with what quantizing again would cost, and whatever reading finds.
pub(crate) fn choose(
    offer: &Offer<'_>,
    outputs: &[OutputTensor],
    (source, scales): (&dyn TensorSource, &Scales),
    plain: impl Fn(&OutputTensor) -> Result<&'static Format>,
) -> Result<Choices> {
    let plain = |output: &OutputTensor| offer.unquantized(output, plain(output)?, source);
    let mut formats = Vec::with_capacity(outputs.len());
    let mut moving = Vec::new();
    for (index, output) in outputs.iter().enumerate() {
        // Of columns that become rows only the numbers can be kept, for blocks go along rows.
        let stays = |(part, _): &(&Part, _)| part.map.source_row(0, 0).is_some();
        let parts = quantized_parts(output, source).filter(|parts| parts.iter().all(stays));
        match parts.filter(|_| output.quantizable && output.class != Class::Vector) {
            Some(parts) => {
                moving.push(Moving { index, output, parts });
                formats.push(&float::F32);
            }
            None => formats.push(plain(output)?),
        }
    }
    let together = if offer.one_for_all { moving.len().max(1) } else { 1 };
    let decide = |group: &[Moving<'_>]| Ok((group.len(), offer.decide(group, source, scales)?));
    let decided: Vec<(usize, &'static Format)> =
        moving.par_chunks(together).map(decide).collect::<Result<_>>()?;
    let each = decided.into_iter().flat_map(|(count, format)| std::iter::repeat_n(format, count));
    moving.iter().zip(each).for_each(|(one, format)| formats[one.index] = format);
    Ok(Choices { formats, fallbacks: Vec::new() })
}

/// The parts of a tensor that is quantized in the source, each with its format; `None` if not all of it is.
fn quantized_parts<'a>(
    output: &'a OutputTensor,
    source: &dyn TensorSource,
) -> Option<Vec<(&'a Part, &'static Format)>> {
    let Content::Parts(parts) = &output.content else { return None };
    let all: Option<Vec<_>> = parts.iter().map(|part| Some((part, quantized(source, part)?))).collect();
    all.filter(|all| !all.is_empty())
}

/// The floats that a format's weights are decoded to.
fn decoded_in(format: &Format) -> &'static Format {
    let scales = mlx_affine::scales_of(format)
        .or_else(|| w4a16::scales_of(format))
        .or_else(|| w4a16_asym::scales_of(format));
    scales.unwrap_or(&float::F32)
}

/// A tensor that is to keep its weights.
struct Moving<'a> {
    index: usize,
    output: &'a OutputTensor,
    parts: Vec<(&'a Part, &'static Format)>,
}

impl Moving<'_> {
    /// Whether blocks of a format can hold the weights as far as levels and groups go.
    fn may_become(&self, format: &'static Format) -> bool {
        // Larger groups would need neighbours that happen to be alike.
        let kept =
            |from: &'static Format| from == format || format.block <= from.block && may_move(from, format);
        format.holds_row(self.output.columns()) && self.parts.iter().all(|&(_, from)| kept(from))
    }

    /// Whether they can: looks at all scales.
    fn becomes(&self, format: &'static Format, source: &dyn TensorSource) -> Result<bool> {
        for &(part, from) in &self.parts {
            if from != format && !holds(source, part, from, format)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether all scales of a part can be held in another format.
fn holds(source: &dyn TensorSource, part: &Part, from: &Format, to: &Format) -> Result<bool> {
    let step = (AT_ONCE / part.columns.max(1)).max(1);
    let mut first = part.rows.start;
    while first < part.rows.end {
        let rows = step.min(part.rows.end - first);
        let weights = rows * part.columns;
        let elements = source.meta(part.source).elements();
        let of = |format: &Format, weights: u64, plane: usize| {
            weights / format.block as u64 * format.planes[plane] as u64
        };
        let mut start = 0;
        let mut planes = Vec::new();
        for plane in 0..from.planes.len() {
            let mut bytes = vec![0; of(from, weights, plane) as usize];
            // Codes with scales beside them fit or don't whatever they are.
            if plane > 0 || from.planes.len() == 1 {
                source.read_at(part.source, start + of(from, first * part.columns, plane), &mut bytes)?;
            }
            start += of(from, elements, plane);
            planes.push(bytes);
        }
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let mut out: Vec<Vec<u8>> =
            (0..to.planes.len()).map(|plane| vec![0; of(to, weights, plane) as usize]).collect();
        let mut out: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
        if !transcode(from, to, &planes, &mut out) {
            return Ok(false);
        }
        first += rows;
    }
    Ok(true)
}

impl Offer<'_> {
    /// The float type for a tensor that is no blocks in the container, where `plain` is usual: one that holds every weight as its consumer
    /// in the source decodes it.
    fn unquantized(
        &self,
        output: &OutputTensor,
        plain: &'static Format,
        source: &dyn TensorSource,
    ) -> Result<&'static Format> {
        let Content::Parts(parts) = &output.content else { return Ok(plain) };
        let mut needed = None;
        for part in parts {
            let refused = |from: String| {
                let (tensor, container) = (output.name.clone(), self.container);
                Err(Error::NotHeld { tensor, from, container, tried: Vec::new(), cost: None })
            };
            // It is in no blocks in the source either, but smaller than its numbers.
            if let Some((name, _)) = source.decoded_from(part.source).filter(|_| output.quantizable) {
                return refused(name.to_string());
            }
            let float = match source.meta(part.source).dtype {
                Dtype::Block(format) if format.block == 1 => format,
                Dtype::Block(format) => decoded_in(format),
                dtype => return refused(dtype.to_string()),
            };
            needed = Some(if needed.is_none_or(|needed| needed == float) { float } else { &float::F32 });
        }
        Ok(needed.filter(|_| *plain != float::F32).unwrap_or(plain))
    }

    /// The formats that may hold all of some tensors, the smallest first, and of those the ones whose consumers round as the source's.
    fn candidates(&self, group: &[Moving<'_>]) -> Vec<&'static Format> {
        let fits = |format: &&&'static Format| {
            let becomes =
                |one: &Moving<'_>| one.output.rows().is_multiple_of(self.rows) && one.may_become(format);
            // Blocks that are copied need no encoder.
            let is_same = group.iter().all(|one| one.parts.iter().all(|(_, from)| from == *format));
            (format.encode.is_some() || is_same) && format.block > 1 && group.iter().all(becomes)
        };
        let mut candidates: Vec<&'static Format> = self.formats.iter().filter(fits).copied().collect();
        let rank = |format: &&'static Format| {
            let from = group.first().map(|one| one.parts[0].1);
            let bits = (format.bits_per_weight() * 1e6) as u64;
            (bits, from != Some(*format), !from.is_some_and(|from| is_decoded_alike(from, format)))
        };
        candidates.sort_by_key(rank);
        candidates
    }

    /// The first format that holds all of some tensors.
    fn decide(
        &self,
        group: &[Moving<'_>],
        source: &dyn TensorSource,
        scales: &Scales,
    ) -> Result<&'static Format> {
        let candidates = self.candidates(group);
        let mut refused = 0;
        for format in &candidates {
            let held = group.par_iter().map(|one| one.becomes(format, source)).collect::<Result<Vec<_>>>()?;
            match held.iter().position(|held| !held) {
                None => return Ok(format),
                Some(index) => refused = index,
            }
        }
        Err(self.refusal(&group[refused], &candidates, source, scales)?)
    }

    /// What to say of a tensor that no format holds.
    fn refusal(
        &self,
        one: &Moving<'_>,
        candidates: &[&'static Format],
        source: &dyn TensorSource,
        scales: &Scales,
    ) -> Result<Error> {
        let from = one.parts[0].1;
        let fits = |format: &&&'static Format| {
            format.encode.is_some() && format.block > 1 && format.holds_row(one.output.columns())
        };
        let near = |format: &&&'static Format| {
            ((format.bits_per_weight() - from.bits_per_weight()).abs() * 1e6) as u64
        };
        let next = candidates.first().or_else(|| self.formats.iter().filter(fits).min_by_key(near)).copied();
        let cost = next
            .map(|format| Ok::<_, Error>((format.name, requantizing(one, format, source, scales)?)))
            .transpose()?;
        Ok(Error::NotHeld {
            tensor: one.output.name.clone(),
            from: from.name.to_owned(),
            container: self.container,
            tried: candidates.iter().map(|format| format.name).collect(),
            cost,
        })
    }
}

/// The relative RMS error of some rows, at even distances, of a tensor that is quantized again.
fn requantizing(
    one: &Moving<'_>,
    format: &Format,
    source: &dyn TensorSource,
    scales: &Scales,
) -> Result<f64> {
    let isa = Isa::detect();
    let (part, from) = one.parts[0];
    let all = part.rows.end - part.rows.start;
    let count = all.min(SAMPLED);
    let (mut error, mut norm) = (0.0, 0.0);
    for i in 0..count {
        let row = part.rows.start + i * all / count;
        let cut = Part { rows: row..row + 1, map: Map::Identity, ..part.clone() };
        let mut buffer = Vec::new();
        let raw = rows::read(source, scales, &cut, &mut buffer)?;
        let mut weights = vec![0.0; part.columns as usize];
        (from.decode)(from, isa, &raw.planes(&cut, 0..1, &buffer), &mut weights);
        let mut again = weights.clone();
        round(isa, format, &mut again);
        let damage = damage(isa, &weights, &again);
        error += damage.squared_error;
        norm += damage.squared_norm;
    }
    Ok(if norm > 0.0 { (error / norm).sqrt() } else { 0.0 })
}
