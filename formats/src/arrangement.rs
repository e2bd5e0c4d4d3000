//! Planes whose rows don't lie one after the other in their file: GPTQ and AWQ keep matrices column by column, and zero points of
//! eight rows share a word.
//!
//! A format's plane has one row after the other. [`Arrangement`] says where these bytes are instead, reads some rows of them, and writes
//! them. Rows at a time become runs of bytes in the file, one for each column, so many rows at a time are read and written fast.

/// How the values of a plane [rows, columns] lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As [columns, rows] of values of so many bytes: GPTQ's words of eight codes, and the scales of GPTQ and AWQ.
    Transposed {
        /// Bytes of a value.
        unit: u64,
    },
    /// In words of 32 bits, four for each of eight rows.
    Eights(Eights),
}

/// Words that hold four bits of each of eight rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eights {
    /// Bits of a value in the plane: 4 (codes, the first in the lowest bits) or 8 (zero points).
    pub bits: u32,
    /// Which four bits of the word, counted from the lowest, each of the rows has.
    pub places: [u8; 8],
    /// Whether words lie as [columns, rows / 8] (GPTQ, AWQ), not as [rows / 8, columns] (compressed-tensors).
    pub across: bool,
    /// What the word's values are less than the plane's: 1 in GPTQ's first version. A plane's value may then be 16.
    pub less: u8,
}

/// The places of eight rows in order.
pub const IN_ORDER: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// The places of AWQ's rows: the lowest four bits have row 0, the next ones row 2, then 4, 6, 1, 3, 5 and 7 (AutoAWQ:
/// `utils/packing_utils.py`).
pub const AWQ_ORDER: [u8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Bytes of a word.
const WORD: u64 = 4;

/// Where a plane's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrangement {
    /// How its values lie.
    pub order: Order,
    /// Rows of the plane.
    pub rows: u64,
    /// Values in a row. Of codes of four bits an even number.
    pub columns: u64,
}

/// Runs of bytes at even distances.
struct Runs {
    first: u64,
    len: u64,
    stride: u64,
    count: u64,
}

impl Runs {
    /// Each run's offset and its range in a buffer of all; a single one where nothing lies between them.
    fn each(&self) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let whole = self.len == self.stride;
        let (len, count) = if whole { (self.len * self.count, 1) } else { (self.len, self.count) };
        (0..count).map(move |i| (self.first + i * self.stride, (i * len) as usize..((i + 1) * len) as usize))
    }

    fn bytes(&self) -> usize {
        (self.len * self.count) as usize
    }
}

impl Arrangement {
    /// Bytes of a row of the plane.
    pub fn row_bytes(&self) -> u64 {
        match self.order {
            Order::Transposed { unit } => self.columns * unit,
            Order::Eights(eights) => self.columns * u64::from(eights.bits) / 8,
        }
    }

    /// Bytes in the file.
    pub fn stored_bytes(&self) -> u64 {
        match self.order {
            Order::Transposed { unit } => self.rows * self.columns * unit,
            Order::Eights(_) => self.rows.div_ceil(8) * self.columns * WORD,
        }
    }

    /// Fills `out` with the plane's bytes from `offset` on. `read` fills a buffer from an offset of the stored bytes.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<E>(
        &self,
        offset: u64,
        out: &mut [u8],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let row = self.row_bytes();
        if out.is_empty() || row == 0 {
            return Ok(());
        }
        let rows = offset / row..(offset + out.len() as u64).div_ceil(row);
        let runs = self.runs(&rows);
        let mut stored = vec![0; runs.bytes()];
        for (at, range) in runs.each() {
            read(at, &mut stored[range])?;
        }
        let from = (offset - rows.start * row) as usize;
        if from == 0 && out.len() as u64 == (rows.end - rows.start) * row {
            self.gather(&rows, &stored, out);
        } else {
            let mut whole = vec![0; ((rows.end - rows.start) * row) as usize];
            self.gather(&rows, &stored, &mut whole);
            out.copy_from_slice(&whole[from..from + out.len()]);
        }
        Ok(())
    }

    /// Writes whole rows of the plane from byte `offset` on. Where only some of eight rows that share words are written, the words are
    /// read before: they must not be written elsewhere at the same time.
    ///
    /// # Errors
    /// Those of `read` and `write`.
    pub fn write<E>(
        &self,
        offset: u64,
        bytes: &[u8],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let row = self.row_bytes();
        if bytes.is_empty() || row == 0 {
            return Ok(());
        }
        let rows = offset / row..(offset + bytes.len() as u64) / row;
        let runs = self.runs(&rows);
        let mut stored = vec![0; runs.bytes()];
        let shares = matches!(self.order, Order::Eights(_));
        if shares && (!rows.start.is_multiple_of(8) || !(rows.end.is_multiple_of(8) || rows.end == self.rows))
        {
            for (at, range) in runs.each() {
                read(at, &mut stored[range])?;
            }
        }
        self.scatter(&rows, bytes, &mut stored);
        runs.each().try_for_each(|(at, range)| write(at, &stored[range]))
    }

    /// What rows lie in.
    fn runs(&self, rows: &std::ops::Range<u64>) -> Runs {
        match self.order {
            Order::Transposed { unit } => Runs {
                first: rows.start * unit,
                len: (rows.end - rows.start) * unit,
                stride: self.rows * unit,
                count: self.columns,
            },
            Order::Eights(eights) => {
                let (start, end) = (rows.start / 8, rows.end.div_ceil(8));
                let all = self.rows.div_ceil(8);
                if eights.across {
                    let (len, stride) = ((end - start) * WORD, all * WORD);
                    Runs { first: start * WORD, len, stride, count: self.columns }
                } else {
                    let len = (end - start) * self.columns * WORD;
                    Runs { first: start * self.columns * WORD, len, stride: len, count: 1 }
                }
            }
        }
    }

    /// Rows of the plane from the bytes of their runs.
    fn gather(&self, rows: &std::ops::Range<u64>, stored: &[u8], out: &mut [u8]) {
        let (count, columns) = ((rows.end - rows.start) as usize, self.columns as usize);
        match self.order {
            Order::Transposed { unit } => transpose(stored, columns, count, unit as usize, out),
            Order::Eights(eights) => {
                let words: Vec<u32> =
                    stored.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
                for (i, row) in out.chunks_exact_mut(self.row_bytes() as usize).enumerate() {
                    let shift = 4 * eights.places[(rows.start as usize + i) % 8];
                    let value = |column| (words[eights.at(rows, i, column, columns)] >> shift) as u8 & 15;
                    if eights.bits == 4 {
                        for (pair, byte) in row.iter_mut().enumerate() {
                            *byte = value(2 * pair) | value(2 * pair + 1) << 4;
                        }
                    } else {
                        let values = row.iter_mut().enumerate();
                        values.for_each(|(column, byte)| *byte = value(column) + eights.less);
                    }
                }
            }
        }
    }

    /// The way back of [`gather`](Self::gather): the other rows' bits are left as they are.
    fn scatter(&self, rows: &std::ops::Range<u64>, bytes: &[u8], stored: &mut [u8]) {
        let (count, columns) = ((rows.end - rows.start) as usize, self.columns as usize);
        match self.order {
            Order::Transposed { unit } => transpose(bytes, count, columns, unit as usize, stored),
            Order::Eights(eights) => {
                let mut words: Vec<u32> =
                    stored.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
                for (i, row) in bytes.chunks_exact(self.row_bytes() as usize).enumerate() {
                    let shift = 4 * eights.places[(rows.start as usize + i) % 8];
                    for column in 0..columns {
                        let value = if eights.bits == 4 {
                            row[column / 2] >> (4 * (column % 2))
                        } else {
                            row[column].wrapping_sub(eights.less)
                        };
                        let word = &mut words[eights.at(rows, i, column, columns)];
                        *word = *word & !(15 << shift) | u32::from(value & 15) << shift;
                    }
                }
                let out = stored.as_chunks_mut().0;
                out.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
            }
        }
    }
}

impl Eights {
    /// Where, among the words of `rows`, that of the `i`th of them is.
    fn at(&self, rows: &std::ops::Range<u64>, i: usize, column: usize, columns: usize) -> usize {
        let (start, end) = (rows.start / 8, rows.end.div_ceil(8));
        let word = (rows.start as usize + i) / 8 - start as usize;
        if self.across { column * (end - start) as usize + word } else { word * columns + column }
    }
}

/// Transposes [rows, columns] values of `unit` bytes, in squares that stay in a core's cache.
fn transpose(from: &[u8], rows: usize, columns: usize, unit: usize, to: &mut [u8]) {
    const SQUARE: usize = 32;
    for first_row in (0..rows).step_by(SQUARE) {
        for first_column in (0..columns).step_by(SQUARE) {
            for row in first_row..rows.min(first_row + SQUARE) {
                for column in first_column..columns.min(first_column + SQUARE) {
                    let (source, target) = ((row * columns + column) * unit, (column * rows + row) * unit);
                    to[target..target + unit].copy_from_slice(&from[source..source + unit]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: u64 = 24;
    const COLUMNS: u64 = 6;

    fn orders() -> Vec<Order> {
        let eights = |bits, places, across, less| Order::Eights(Eights { bits, places, across, less });
        vec![
            Order::Transposed { unit: 4 },
            Order::Transposed { unit: 2 },
            eights(4, AWQ_ORDER, true, 0),
            eights(8, AWQ_ORDER, true, 0),
            eights(8, IN_ORDER, true, 1),
            eights(8, IN_ORDER, false, 0),
        ]
    }

    /// A plane's bytes: any, but zero points are four bits wide.
    fn plane(arrangement: &Arrangement) -> Vec<u8> {
        let bytes = (0..arrangement.rows * arrangement.row_bytes()).map(|i| (i * 37 % 251) as u8);
        match arrangement.order {
            Order::Eights(Eights { bits: 8, less, .. }) => bytes.map(|byte| byte % 15 + less).collect(),
            _ => bytes.collect(),
        }
    }

    fn write(arrangement: &Arrangement, offset: u64, bytes: &[u8], file: &mut [u8]) {
        let file = std::cell::RefCell::new(file);
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&file.borrow()[at as usize..][..out.len()]);
            Ok::<_, ()>(())
        };
        let write = |at: u64, bytes: &[u8]| {
            file.borrow_mut()[at as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        arrangement.write(offset, bytes, read, write).expect("memory");
    }

    fn read(arrangement: &Arrangement, offset: u64, len: usize, file: &[u8]) -> Vec<u8> {
        let mut out = vec![0xaa; len];
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&file[at as usize..][..out.len()]);
            Ok::<_, ()>(())
        };
        arrangement.read(offset, &mut out, read).expect("memory");
        out
    }

    #[test]
    fn what_is_written_in_pieces_is_read_in_others() {
        for order in orders() {
            for rows in [ROWS, ROWS - 3] {
                let arrangement = Arrangement { order, rows, columns: COLUMNS };
                let (plane, row) = (plane(&arrangement), arrangement.row_bytes());
                let mut whole = vec![0; arrangement.stored_bytes() as usize];
                write(&arrangement, 0, &plane, &mut whole);
                let mut pieces = vec![0; whole.len()];
                for (start, end) in [(9, 16), (0, 5), (16, rows), (5, 9)] {
                    let range = (start * row) as usize..(end * row) as usize;
                    write(&arrangement, start * row, &plane[range], &mut pieces);
                }
                assert_eq!(pieces, whole, "{order:?}");
                for range in [0..plane.len(), 1..2, 7..7, row as usize - 1..5 * row as usize + 1] {
                    let found = read(&arrangement, range.start as u64, range.len(), &whole);
                    assert_eq!(found, plane[range], "{order:?}");
                }
            }
        }
    }

    /// By hand, from the layouts of GPTQModel, AutoAWQ and compressed-tensors.
    #[test]
    fn words_lie_as_their_loaders_want_them() {
        let zeros: Vec<u8> = (1..=16).collect();
        let eights = |places, across, less| {
            let order = Order::Eights(Eights { bits: 8, places, across, less });
            let arrangement = Arrangement { order, rows: 8, columns: 2 };
            let mut file = vec![0; 8];
            // Row r has 1 + 2r and 2 + 2r; the last of all is out of range where nothing is subtracted.
            write(
                &arrangement,
                0,
                &zeros.iter().map(|&zero| zero.min(15 + less)).collect::<Vec<_>>(),
                &mut file,
            );
            file.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>()
        };
        assert_eq!(eights(IN_ORDER, true, 0), [0xfdb9_7531, 0xfeca_8642]);
        assert_eq!(eights(IN_ORDER, false, 0), [0xfdb9_7531, 0xfeca_8642]);
        assert_eq!(eights(IN_ORDER, true, 1), [0xeca8_6420, 0xfdb9_7531]);
        // From the lowest: rows 0, 2, 4, 6, 1, 3, 5, 7.
        assert_eq!(eights(AWQ_ORDER, true, 0)[0], 0xfb73_d951);
        let order = Order::Transposed { unit: 4 };
        let arrangement = Arrangement { order, rows: 2, columns: 2 };
        let mut file = vec![0; 16];
        write(&arrangement, 0, b"r0c0r0c1r1c0r1c1", &mut file);
        assert_eq!(&file, b"r0c0r1c0r0c1r1c1");
    }

    #[test]
    fn zero_points_out_of_range_stay_visible() {
        let eights = Eights { bits: 8, places: IN_ORDER, across: true, less: 1 };
        let arrangement = Arrangement { order: Order::Eights(eights), rows: 8, columns: 1 };
        assert_eq!(read(&arrangement, 0, 8, &0x7777_777fu32.to_le_bytes()), [16, 8, 8, 8, 8, 8, 8, 8]);
    }
}
