//! Signatures in the form of minisign (Ed25519, <https://jedisct1.github.io/minisign/>): `halfbyte.json.minisig` over `halfbyte.json`,
//! which has the hashes of all files in it.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use minisign::{SecretKeyBox, SignatureBox};
use minisign_verify::{PublicKey, Signature};

use crate::error::{Error, Result};

/// The signature's file.
pub const NAME: &str = "halfbyte.json.minisig";
/// The longest signature or key that is read.
pub const MOST_BYTES: u64 = 64 << 10;

/// Whose signature is wanted.
pub struct Key {
    key: PublicKey,
    id: String,
}

impl Key {
    /// A public key's file, or the key itself: the 56 characters that begin with `RW`.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is neither.
    pub fn of(text: &str) -> Result<Key> {
        let path = Path::new(text);
        if path.is_file() {
            return Key::parse(&read(path)?).ok_or_else(|| {
                Error::Usage(format!("{text} is no public key of minisign's (minisign.pub)"))
            });
        }
        Key::parse(text).ok_or_else(|| {
            Error::Usage(format!(
                "{text} is neither a file nor a public key of minisign's, which has 56 characters and begins with RW"
            ))
        })
    }

    fn parse(text: &str) -> Option<Key> {
        // The first line of a file is a comment.
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
        let id = minisign::PublicKey::from_base64(line).ok()?;
        Some(Key { key: PublicKey::from_base64(line).ok()?, id: shown(id.keynum()) })
    }

    /// Its number, as minisign shows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Checks a signature over `message`, and gives the comment that it covers.
    ///
    /// # Errors
    /// In plain words.
    pub fn verify(&self, message: &[u8], signature: &str) -> std::result::Result<String, String> {
        let by = signer(signature)?;
        if by != self.id {
            return Err(format!("it was signed with the key {by}, not with {}", self.id));
        }
        let signature =
            Signature::decode(signature).map_err(|error| format!("it is no signature: {error}"))?;
        self.key.verify(message, &signature, false).map_err(|_| {
            format!(
                "its signature by the key {} does not hold: one of the two was changed after it was signed",
                self.id
            )
        })?;
        Ok(signature.trusted_comment().chars().filter(|c| !c.is_control()).take(500).collect())
    }
}

/// The number of the key that a signature says it was made with.
///
/// # Errors
/// In plain words, if it is none.
pub fn signer(signature: &str) -> std::result::Result<String, String> {
    let signature =
        SignatureBox::from_string(signature).map_err(|error| format!("it is no signature: {error}"))?;
    Ok(shown(signature.keynum()))
}

/// As minisign shows it: the bytes as a number, the lowest first.
fn shown(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

/// A key to sign with.
pub struct SecretKey(minisign::SecretKey);

impl SecretKey {
    /// Reads what `minisign -G` or `rsign generate` wrote; the password is asked for if the key has one.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is no such key, or the password is wrong.
    pub fn read(path: &Path, password: impl FnOnce() -> Result<String>) -> Result<SecretKey> {
        let wrong =
            |problem: String| Error::Usage(format!("{} can't be signed with: {problem}", path.display()));
        let text = read(path)?;
        let stored = || SecretKeyBox::from(text.clone());
        match stored().into_unencrypted_secret_key() {
            Ok(key) => Ok(SecretKey(key)),
            Err(error) if error.to_string().contains("might be encrypted") => {
                let key = stored().into_secret_key(Some(password()?));
                key.map(SecretKey).map_err(|error| wrong(error.to_string()))
            }
            Err(error) => Err(wrong(format!("it is no secret key of minisign's ({error})"))),
        }
    }

    /// The key that its signatures are checked with.
    ///
    /// # Errors
    /// [`Error::Usage`] if the stored key is not whole.
    pub fn public(&self) -> Result<Key> {
        let key =
            minisign::PublicKey::from_secret_key(&self.0).ok().and_then(|key| Key::parse(&key.to_base64()));
        key.ok_or_else(|| Error::Usage("the secret key has no public key in it".into()))
    }

    /// Signs a message, and a comment of one line with it.
    ///
    /// # Errors
    /// [`Error::Usage`] if the system has no randomness to give.
    pub fn sign(&self, message: &[u8], comment: &str) -> Result<String> {
        let untrusted = "signature of halfbyte.json";
        minisign::sign(None, &self.0, Cursor::new(message), Some(comment), Some(untrusted))
            .map(SignatureBox::into_string)
            .map_err(|error| Error::Usage(format!("can't sign: {error}")))
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).map_err(Error::io(path))?.len();
    if bytes > MOST_BYTES {
        return Err(Error::Usage(format!("{} has {bytes} bytes: that is no key", path.display())));
    }
    fs::read_to_string(path).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;

    use super::*;

    fn pair() -> (SecretKey, Key) {
        let pair = KeyPair::generate_unencrypted_keypair().expect("keys");
        (SecretKey(pair.sk), Key::of(&pair.pk.to_base64()).expect("public key"))
    }

    #[test]
    fn a_signature_holds_for_its_key_and_its_message() {
        let ((secret, key), (_, other)) = (pair(), pair());
        assert_eq!(secret.public().expect("public").id(), key.id());
        let signature = secret.sign(b"message", "o/m recipe 00").expect("signature");
        assert_eq!(signer(&signature).as_deref(), Ok(key.id()));
        assert_eq!(key.verify(b"message", &signature).as_deref(), Ok("o/m recipe 00"));
        assert!(key.verify(b"massage", &signature).expect_err("changed").contains("does not hold"));
        let error = other.verify(b"message", &signature).expect_err("another key");
        assert!(error.contains(key.id()) && error.contains(other.id()), "{error}");
        let forged = signature.replace("recipe 00", "recipe 01");
        assert!(key.verify(b"message", &forged).is_err(), "the comment is signed too");
    }

    #[test]
    fn what_is_no_signature_is_an_error_and_no_panic() {
        let (secret, key) = pair();
        let signature = secret.sign(b"m", "c").expect("signature");
        for cut in 0..signature.len() - 1 {
            assert!(key.verify(b"m", &signature[..cut]).is_err() || cut + 2 > signature.trim_end().len());
        }
        for text in ["", "\n\n\n\n", "untrusted comment: a\nRUQ=\ntrusted comment: b\nAA==\n"] {
            assert!(key.verify(b"m", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_are_read_from_files_with_and_without_a_password() {
        let dir = tempfile::tempdir().expect("dir");
        let (public, secret) = (dir.path().join("k.pub"), dir.path().join("k.key"));
        let plain = KeyPair::generate_unencrypted_keypair().expect("keys");
        fs::write(&public, plain.pk.to_box().expect("box").to_bytes()).expect("file");
        fs::write(&secret, plain.sk.to_box(None).expect("box").to_bytes()).expect("file");
        let key = Key::of(public.to_str().expect("path")).expect("public key");
        let unasked = || -> Result<String> { panic!("no password is needed") };
        let signature = SecretKey::read(&secret, unasked).expect("key").sign(b"m", "c").expect("signature");
        key.verify(b"m", &signature).expect("holds");

        let locked = KeyPair::generate_encrypted_keypair(Some("right".into())).expect("keys");
        fs::write(&secret, locked.sk.to_box(None).expect("box").to_bytes()).expect("file");
        assert!(SecretKey::read(&secret, || Ok("right".into())).is_ok());
        let error = SecretKey::read(&secret, || Ok("wrong".into())).err().expect("wrong").to_string();
        assert!(error.contains("Wrong password") && !error.contains("right"), "{error}");
        assert!(SecretKey::read(&public, || Ok(String::new())).is_err());
        assert!(Key::of(secret.to_str().expect("path")).is_err() && Key::of("RWabc").is_err());
    }
}
