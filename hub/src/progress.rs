//! Who is told how far a transfer is.

/// Watches bytes come in or go out.
pub trait Progress: Send + Sync {
    /// So many bytes are to be transferred, of which `there` are at hand already.
    fn begin(&self, what: &str, bytes: u64, there: u64);

    /// So many more bytes went over the network.
    fn advance(&self, bytes: u64);

    /// It is over.
    fn end(&self);

    /// Something that the user should know, such as a retry.
    fn note(&self, line: &str);
}

/// Nobody.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn note(&self, _: &str) {}
}
