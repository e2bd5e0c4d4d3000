//! Products with weights, decoded by the kernel that multiplies.

use std::ops::Range;
use std::sync::Arc;

use kernels::matrix::Matrix as Host;
use kernels::shaders::{self, Function, Operands, Other, TILE, Unit};

use super::Gpu;
use super::commands::{Binding, MOST_WORK};
use super::device::Device;
use super::resident::{Chunk, Matrix, Wanted, decoded};
use super::rowwise::elementwise;
use super::tensor::{Tensor, groups_of, row_tiles, row_tiles_of};
use crate::error::Result;
use crate::weights::{Linear, Stack};

/// Activations in half precision.
struct Halves {
    values: Tensor,
    /// What each row was divided by.
    scales: Tensor,
    columns: usize,
}

impl Halves {
    /// Where some rows' values are.
    fn range(&self, rows: &Range<usize>) -> Range<u64> {
        let [start, end] = [rows.start, rows.end].map(|row| (2 * row * self.columns) as u64);
        start..end.next_multiple_of(4)
    }
}

/// One product: which part of the weights, and where things lie.
struct Product {
    rows: usize,
    /// The first row in the chunk.
    w_first: usize,
    columns: usize,
    x_first: usize,
    result_first: usize,
    batch: usize,
    /// From one matrix of the batch to the next.
    w_step: usize,
    x_step: usize,
    result_step: usize,
}

impl Gpu<'_> {
    /// See [`Ops::linear`](crate::ops::Ops::linear).
    pub(super) fn linear(&self, x: &Tensor, w: &Linear) -> Result<Tensor> {
        let wanted = Wanted {
            tensor: w.tensor,
            rows: w.rows.clone(),
            columns: w.columns,
            grain: TILE,
            transposed: false,
        };
        let matrix = match self.tap.untouched() {
            Some(weights) => self.resident.get(&self.device, weights, &wanted)?,
            None => {
                let values = self.device.read(x.buffer(), x.bytes())?;
                self.tap.product(Host::dense(&values, x.rows, x.columns), w)?;
                Arc::new(decoded(&self.device, self.tap, &wanted)?)
            }
        };
        let halves = self.halved(x);
        let out = Tensor::unwritten(&self.device, x.rows, w.rows.len());
        for chunk in &matrix.chunks {
            let rows = chunk.rows.start.max(w.rows.start)..chunk.rows.end.min(w.rows.end);
            if rows.is_empty() {
                continue;
            }
            let product = Product {
                rows: rows.len(),
                w_first: rows.start - chunk.rows.start,
                columns: w.columns,
                x_first: 0,
                result_first: rows.start - w.rows.start,
                batch: 1,
                w_step: 0,
                x_step: 0,
                result_step: 0,
            };
            self.multiply(x, halves.as_ref(), &matrix, chunk, &product, &out);
        }
        self.finish(halves.as_ref(), &out, w.bias.as_deref());
        Ok(out)
    }

    /// See [`Ops::per_head`](crate::ops::Ops::per_head).
    pub(super) fn per_head(&self, x: &Tensor, w: &Stack, transposed: bool) -> Result<Tensor> {
        let first = w.one(0);
        let (rows, columns) = (first.rows.len(), first.columns);
        let apart = if w.count > 1 { w.one(1).rows.start - first.rows.start } else { rows };
        let (k, n) = if transposed { (rows, columns) } else { (columns, rows) };
        let wanted = Wanted {
            tensor: first.tensor,
            rows: first.rows.start..first.rows.start + (w.count - 1) * apart + rows,
            columns,
            grain: apart,
            transposed,
        };
        assert!(!transposed || rows == apart, "only whole matrices can be transposed");
        let matrix = match self.tap.untouched() {
            Some(weights) => self.resident.get(&self.device, weights, &wanted)?,
            None => Arc::new(decoded(&self.device, self.tap, &wanted)?),
        };
        let halves = self.halved(x);
        let own = if x.columns == k { 0 } else { k };
        let out = Tensor::unwritten(&self.device, x.rows, w.count * n);
        // Rows of a head's matrix in the buffer.
        let step = if transposed { columns } else { apart };
        // What is there may hold more heads than these.
        let place = if transposed { wanted.rows.start / rows * columns } else { wanted.rows.start };
        for chunk in &matrix.chunks {
            let begin = chunk.rows.start.max(place);
            let end = chunk.rows.end.min(place + (w.count - 1) * step + n);
            if begin >= end {
                continue;
            }
            let head = (begin - place) / step;
            let batch = (end - begin).div_ceil(step);
            let product = Product {
                rows: n,
                w_first: begin - chunk.rows.start,
                columns: k,
                x_first: head * own,
                result_first: head * n,
                batch,
                w_step: step,
                x_step: own,
                result_step: n,
            };
            self.multiply(x, halves.as_ref(), &matrix, chunk, &product, &out);
        }
        self.finish(halves.as_ref(), &out, None);
        Ok(out)
    }

    /// The activations in half precision, if that is what is multiplied.
    fn halved(&self, x: &Tensor) -> Option<Halves> {
        if self.operands == Operands::F32 {
            return None;
        }
        let device = &self.device;
        let values = Tensor::unwritten(device, x.rows, x.columns.div_ceil(2));
        let scales = Tensor::unwritten(device, x.rows, 1);
        let halves = Halves { values, scales, columns: x.columns };
        let shader = shaders::halve();
        for rows in row_tiles(device, x.rows, x.columns) {
            let values = Binding::Write(halves.values.buffer(), halves.range(&rows));
            let params = [rows.len() as u32, x.columns as u32];
            let bindings = [x.read(&rows), values, halves.scales.write(&rows)];
            device.run(&shader, &bindings, &params, groups_of(rows.len()));
        }
        Some(halves)
    }

    /// One product with one chunk of weights.
    fn multiply(
        &self,
        x: &Tensor,
        halves: Option<&Halves>,
        w: &Matrix,
        chunk: &Chunk,
        product: &Product,
        out: &Tensor,
    ) {
        let device = &self.device;
        let is_tiled = product.rows.is_multiple_of(TILE) && device.multiplies_cooperatively(self.operands);
        let unit = if is_tiled { Unit::Cooperative } else { Unit::Plain };
        let shader = shaders::matmul(&w.decoder, self.operands, unit);
        // Of so many operations a token, as many tokens as one command may have.
        let per_token = 2.0 * (product.rows * product.columns * product.batch) as f64;
        let most = (MOST_WORK / per_token.max(1.0)) as usize;
        for rows in row_tiles_of(device, x.rows, x.columns.max(out.columns), most) {
            let read = match halves {
                Some(halves) => Binding::Read(halves.values.buffer(), halves.range(&rows)),
                None => x.read(&rows),
            };
            let bindings = [Binding::read(&chunk.buffer), read, out.write_tiles(&rows)];
            let [plane1, plane2] = chunk.planes;
            let numbers = [
                rows.len(),
                product.rows,
                product.columns,
                chunk.stride,
                product.w_first,
                x.columns,
                product.x_first,
                out.columns,
                product.result_first,
                product.w_step,
                product.x_step,
                product.result_step,
            ];
            let mut params = vec![plane1, plane2];
            params.extend(numbers.map(|n| n as u32));
            let groups = [product.rows.div_ceil(TILE), rows.len().div_ceil(TILE), product.batch];
            device.run(&shader, &bindings, &params, groups.map(|n| n as u32));
            device.worked(rows.len() as f64 * per_token);
        }
    }

    /// Undoes the division by scales, and adds the bias.
    fn finish(&self, halves: Option<&Halves>, out: &Tensor, bias: Option<&[f32]>) {
        if let Some(halves) = halves {
            elementwise(out, Function::Multiply, Other::Row, Some(&halves.scales), [0.0; 2]);
        }
        if let Some(bias) = bias {
            let bias = Tensor::with(&self.device, bias, bias.len());
            elementwise(out, Function::Add, Other::Column, Some(&bias), [0.0; 2]);
        }
    }
}

impl Device {
    /// Whether it has cooperative matrices for products of such operands.
    fn multiplies_cooperatively(&self, operands: Operands) -> bool {
        match operands {
            Operands::F32 => self.cooperative.f32,
            Operands::F16 => self.cooperative.f16,
        }
    }
}
