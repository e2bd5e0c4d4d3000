//! `tokenizer.model`: SentencePiece's protobuf message `ModelProto`, of which only the pieces are read
//! (`sentencepiece_model.proto`: pieces = 1 {piece = 1, score = 2, type = 3}, normalizer_spec = 3 {add_dummy_prefix = 3}).

use super::{Kind, Token};

/// What a SentencePiece model says about its vocabulary.
#[derive(Debug)]
pub(super) struct Model {
    /// The pieces, by id.
    pub tokens: Vec<Token>,
    /// Whether text gets a space in front.
    pub add_dummy_prefix: bool,
}

/// Reads a model.
///
/// # Errors
/// In words, if the bytes aren't such a message.
pub(super) fn read(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model { tokens: Vec::new(), add_dummy_prefix: true };
    fields(bytes, |number, value| {
        match (number, value) {
            (1, Field::Bytes(piece)) => model.tokens.push(read_piece(piece)?),
            (3, Field::Bytes(normalizer)) => fields(normalizer, |number, value| {
                if let (3, Field::Number(flag)) = (number, value) {
                    model.add_dummy_prefix = flag != 0;
                }
                Some(())
            })?,
            _ => {}
        }
        Some(())
    })
    .filter(|()| !model.tokens.is_empty())
    .ok_or("is no SentencePiece model")?;
    Ok(model)
}

fn read_piece(bytes: &[u8]) -> Option<Token> {
    let mut token = Token { text: String::new(), score: 0.0, kind: Kind::Normal };
    fields(bytes, |number, value| {
        match (number, value) {
            (1, Field::Bytes(text)) => token.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Bits32(score)) => token.score = f32::from_bits(score),
            (3, Field::Number(kind)) => {
                token.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => return None,
                };
            }
            _ => {}
        }
        Some(())
    })?;
    Some(token)
}

enum Field<'a> {
    Number(u64),
    Bits32(u32),
    Bytes(&'a [u8]),
}

/// Calls `visit` with each field's number and value, until it returns `None` or the message ends.
fn fields<'a>(mut bytes: &'a [u8], mut visit: impl FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => {
                take(&mut bytes, 8)?;
                continue;
            }
            2 => {
                let len = varint(&mut bytes)?;
                Field::Bytes(take(&mut bytes, len.try_into().ok()?)?)
            }
            5 => Field::Bits32(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?)),
            _ => return None,
        };
        visit(tag >> 3, value)?;
    }
    Some(())
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(len)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message with these pieces (text, score, type) and `add_dummy_prefix`.
    pub fn encode(pieces: &[(&str, f32, u8)], add_dummy_prefix: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (text, score, kind) in pieces {
            let mut piece = vec![0x0a, text.len() as u8];
            piece.extend(text.as_bytes());
            piece.push(0x15);
            piece.extend(score.to_le_bytes());
            piece.extend([0x18, *kind]);
            out.extend([0x0a, piece.len() as u8]);
            out.extend(piece);
        }
        // trainer_spec, skipped; normalizer_spec.
        out.extend([0x12, 2, 0x18, 2]);
        out.extend([0x1a, 2, 0x18, u8::from(add_dummy_prefix)]);
        out
    }

    #[test]
    fn reads_pieces() {
        let bytes = encode(&[("<unk>", 0.0, 2), ("<0x0A>", 0.0, 6), ("▁the", -1.5, 1)], false);
        let model = read(&bytes).unwrap();
        let found: Vec<_> = model.tokens.iter().map(|t| (t.text.as_str(), t.score, t.kind)).collect();
        assert_eq!(
            found,
            [("<unk>", 0.0, Kind::Unknown), ("<0x0A>", 0.0, Kind::Byte), ("▁the", -1.5, Kind::Normal)]
        );
        assert!(!model.add_dummy_prefix);
    }

    #[test]
    fn refuses_other_bytes() {
        let good = encode(&[("<unk>", 0.0, 2), ("a", -1.0, 1)], true);
        assert!(read(&good[..good.len() - 1]).is_err(), "truncated");
        assert!(read(&good[..5]).is_err(), "truncated within a piece");
        assert!(read(b"").is_err());
        // tiktoken's vocabulary files have the same name.
        assert!(read(b"IQ== 0\nIg== 1\n").is_err());
        assert!(read(&encode(&[("a", 0.0, 9)], true)).is_err(), "a type that doesn't exist");
        assert!(
            read(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err(),
            "a huge length"
        );
    }
}
