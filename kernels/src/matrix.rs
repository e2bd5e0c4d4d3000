//! Matrices of `f32` inside larger buffers: rows at a stride.

/// A matrix `[rows][columns]`: row `r` begins at `values[r * stride]`. A part of a wider matrix is the slice that begins at
/// its first element.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// The elements, from the first of the first row on.
    pub values: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Elements from the beginning of one row to that of the next.
    pub stride: usize,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows follow each other without gaps.
    pub fn dense(values: &'a [f32], rows: usize, columns: usize) -> Matrix<'a> {
        Matrix { values, rows, columns, stride: columns }
    }

    /// Row `r`.
    #[inline(always)]
    pub fn row(&self, r: usize) -> &'a [f32] {
        &self.values[r * self.stride..][..self.columns]
    }

    /// Rows `first .. first + rows`.
    #[inline(always)]
    pub fn part(&self, first: usize, rows: usize) -> Matrix<'a> {
        assert!(first + rows <= self.rows);
        let start = (first * self.stride).min(self.values.len());
        Matrix { values: &self.values[start..], rows, ..*self }
    }
}

/// A [`Matrix`] that is written.
pub struct MatrixMut<'a> {
    /// The elements, from the first of the first row on.
    pub values: &'a mut [f32],
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Elements from the beginning of one row to that of the next.
    pub stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// A matrix whose rows follow each other without gaps.
    pub fn dense(values: &'a mut [f32], rows: usize, columns: usize) -> MatrixMut<'a> {
        MatrixMut { values, rows, columns, stride: columns }
    }

    /// Row `r`.
    #[inline(always)]
    pub fn row(&mut self, r: usize) -> &mut [f32] {
        &mut self.values[r * self.stride..][..self.columns]
    }
}
