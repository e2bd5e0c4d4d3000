//! Messages without secrets: what other people's code says of an error may quote addresses with signatures in them, or headers.

use crate::settings::Token;

/// Of a message, so many characters are kept.
const MOST: usize = 600;
/// The shortest rest of a word that begins as a secret does and is taken for one.
const SECRET: usize = 8;

/// A message in one line, without the token and what looks like one, and without the queries and passwords of addresses.
pub(crate) fn redact(text: &str, token: Option<&Token>) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some(token) = token {
        text = text.replace(token.reveal(), "…");
    }
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("://") {
        // The scheme is kept as it is.
        let (before, from) = rest.split_at(at + 3);
        let end = from.find(|c: char| c.is_whitespace() || "\"'`<>()[]{}|".contains(c)).unwrap_or(from.len());
        let (address, after) = from.split_at(end);
        kept += before;
        kept += &without_secrets(address);
        rest = after;
    }
    kept += rest;
    let words: Vec<String> = kept.split(' ').map(without_token).collect();
    let mut kept = words.join(" ");
    if let Some((at, _)) = kept.char_indices().nth(MOST) {
        kept.truncate(at);
        kept.push('…');
    }
    kept
}

/// An address behind its scheme, without user and query.
fn without_secrets(address: &str) -> String {
    let (path, query) = match address.find(['?', '#']) {
        Some(at) => (&address[..at], "?…"),
        None => (address, ""),
    };
    let host = path.find('/').unwrap_or(path.len());
    let start = path[..host].rfind('@').map_or(0, |at| at + 1);
    format!("{}{query}", &path[start..])
}

/// A word, in which what begins as a token of the Hub's (`hf_`) or of Xet's (`eyJ`, a JSON web token) is cut.
fn without_token(word: &str) -> String {
    for start in ["hf_", "eyJ"] {
        let inside = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
        let found = word
            .match_indices(start)
            .find(|(at, _)| word[at + start.len()..].chars().take_while(|c| inside(*c)).count() >= SECRET);
        if let Some((at, _)) = found {
            let secret: usize = word[at..].chars().take_while(|c| inside(*c)).count();
            return format!("{}…{}", &word[..at], without_token(&word[at + secret..]));
        }
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_left() {
        let token = Token::new("secretsecret").expect("token");
        for (text, clean) in [
            ("sent secretsecret to x", "sent … to x"),
            ("GET https://u:p@cdn.example/a?X-Sig=abc&b=c failed", "GET https://cdn.example/a?… failed"),
            ("(url=http://h/a?b=c, request_id=1)", "(url=http://h/a?… request_id=1)"),
            ("(http://h/a#b) local:///tmp/x", "(http://h/a?…) local:///tmp/x"),
            ("Bearer hf_abcdefghijk, and hf_short", "Bearer …, and hf_short"),
            ("token=eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.sig! x", "token=…! x"),
            ("two\nlines", "two lines"),
        ] {
            let found = redact(text, Some(&token));
            assert_eq!(found, clean, "{text}");
        }
        assert_eq!(redact(&"ä".repeat(700), None).chars().count(), MOST + 1);
    }
}
