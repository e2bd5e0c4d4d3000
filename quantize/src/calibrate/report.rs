//! What calibration did to each tensor.

/// A tensor that was rounded by what it is multiplied with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounded {
    /// The output tensor.
    pub tensor: String,
    /// Its format.
    pub format: &'static str,
    /// Energy of its outputs, over tokens that were held out.
    pub energy: f64,
    /// Squared error of these outputs with scales searched by importance.
    pub searched: f64,
    /// With what was written.
    pub written: f64,
    /// Matrices: one, or one for each expert that some token reached.
    pub matrices: u64,
    /// Of these, how many were rounded with error feedback.
    pub fed_back: u64,
    /// Tokens that reached the matrix with the fewest.
    pub fewest_tokens: u64,
    /// Rows of experts that no token reached.
    pub unseen_rows: u64,
}

impl Rounded {
    /// Adds another matrix of the same tensor.
    pub fn add(&mut self, other: &Rounded) {
        let fewest = if self.matrices == 0 { u64::MAX } else { self.fewest_tokens };
        self.energy += other.energy;
        self.searched += other.searched;
        self.written += other.written;
        self.matrices += other.matrices;
        self.fed_back += other.fed_back;
        self.fewest_tokens = fewest.min(other.fewest_tokens);
        self.unseen_rows += other.unseen_rows;
    }
}
