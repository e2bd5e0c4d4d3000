//! Which of llama.cpp's pre-tokenizers (`tokenizer.ggml.pre`) splits text as a `tokenizer.json` does.
//!
//! llama.cpp's converter finds the name by tokenizing a test text and looking its hash up. Here the rules themselves are
//! compared with those behind each name (`llama_vocab` and `llm_tokenizer_bpe` in `llama-vocab.cpp`): a wrong name costs
//! quality without any error, so what isn't known for certain is refused.

use serde_json::Value;

/// GPT-2's rule, which `ByteLevel` brings along.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `Digits` with `individual_digits`.
const DIGITS: &str = r"\p{N}";
const UP_TO_3_DIGITS: &str = r"\p{N}{1,3}";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

const DEEPSEEK3_CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const NEWLINE: &str = r"[\r\n]";
/// Some of these characters have another canonical form, into which editors and copies turn them: they are escaped.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_PUNCTUATION: &str = "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
const TRAILING_SPACE: &str = r"\s+$";
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";

struct Known {
    name: &'static str,
    rules: &'static [&'static str],
    /// What llama.cpp does with a word that is a token as a whole: take it (`true`) or merge up to it (`false`). `None` where
    /// both occur under the name.
    ignore_merges: Option<bool>,
}

static KNOWN: &[Known] = &[
    Known { name: "gpt-2", rules: &[GPT2], ignore_merges: Some(false) },
    Known { name: "smollm", rules: &[DIGITS, GPT2], ignore_merges: Some(false) },
    Known { name: "llama-bpe", rules: &[LLAMA3], ignore_merges: Some(true) },
    Known { name: "smaug-bpe", rules: &[LLAMA3], ignore_merges: Some(false) },
    Known { name: "qwen2", rules: &[QWEN2], ignore_merges: Some(false) },
    Known { name: "qwen35", rules: &[QWEN35], ignore_merges: Some(false) },
    Known { name: "tekken", rules: &[TEKKEN], ignore_merges: Some(true) },
    Known { name: "gpt-4o", rules: &[GPT4O], ignore_merges: None },
    Known {
        name: "deepseek-v3",
        rules: &[UP_TO_3_DIGITS, DEEPSEEK3_CJK, DEEPSEEK3],
        ignore_merges: Some(false),
    },
    Known {
        name: "deepseek-llm",
        rules: &[NEWLINE, DEEPSEEK_LETTERS, DEEPSEEK_PUNCTUATION, TRAILING_SPACE, DEEPSEEK_CJK, DIGITS],
        ignore_merges: Some(false),
    },
    Known {
        name: "deepseek-coder",
        rules: &[NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGITS],
        ignore_merges: Some(false),
    },
    Known { name: "seed-coder", rules: &[SEED_CODER], ignore_merges: Some(false) },
    Known { name: "bailingmoe", rules: &[BAILING], ignore_merges: Some(false) },
];

/// The rules behind a name, if it is one of those that [`gguf_metadata`](super::gguf_metadata) writes: regular expressions,
/// each of which cuts every piece that the one before has left into its matches and what lies between them.
pub fn rules(name: &str) -> Option<&'static [&'static str]> {
    KNOWN.iter().find(|known| known.name == name).map(|known| known.rules)
}

/// The name for a byte-level tokenizer's `pre_tokenizer`.
///
/// # Errors
/// In words, with the rules that nothing matches.
pub(super) fn identify(pre_tokenizer: &Value, ignore_merges: bool) -> Result<&'static str, String> {
    let mut rules = Vec::new();
    collect(pre_tokenizer, &mut rules)?;
    let known = KNOWN.iter().find(|known| {
        known.rules == rules && known.ignore_merges.is_none_or(|ignore| ignore == ignore_merges)
    });
    known.map(|known| known.name).ok_or_else(|| {
        format!(
            "splits text by rules that no pre-tokenizer of llama.cpp known here has (ignore_merges = {ignore_merges}): \
             {}. A wrong name would cost quality silently",
            rules.join("  then  ")
        )
    })
}

/// Appends the regular expressions that a pre-tokenizer applies, one after the other, with line ends written as escapes.
fn collect(value: &Value, rules: &mut Vec<String>) -> Result<(), String> {
    let unknown = || Err(format!("has a pre-tokenizer step that llama.cpp doesn't know: {value}"));
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    match value.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let Some(steps) = value.get("pretokenizers").and_then(Value::as_array) else { return unknown() };
            steps.iter().try_for_each(|step| collect(step, rules))?;
        }
        Some("ByteLevel") if !flag("add_prefix_space", true) => {
            if flag("use_regex", true) {
                rules.push(GPT2.into());
            }
        }
        Some("Digits") if flag("individual_digits", false) => rules.push(DIGITS.into()),
        Some("Split") => {
            // Both ways of saying: the matches are the pieces.
            let behaviour = value.get("behavior").and_then(Value::as_str);
            let whole = matches!(
                (behaviour, flag("invert", false)),
                (Some("Isolated"), false) | (Some("Removed"), true)
            );
            let pattern =
                value.get("pattern").and_then(|pattern| pattern.get("Regex")).and_then(Value::as_str);
            match pattern {
                Some(pattern) if whole => rules.push(pattern.replace('\r', r"\r").replace('\n', r"\n")),
                _ => return unknown(),
            }
        }
        _ => return unknown(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn split(pattern: &str) -> Value {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    }

    fn sequence(steps: &[Value]) -> Value {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    fn bytes() -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
    }

    /// As the models' own files have them.
    #[test]
    fn knows_the_common_ones() {
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        assert_eq!(identify(&byte_level, false), Ok("gpt-2"));
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(identify(&sequence(&[digits, byte_level]), false), Ok("smollm"));

        let llama3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
        assert_eq!(identify(&sequence(&[split(llama3), bytes()]), true), Ok("llama-bpe"));
        assert_eq!(identify(&sequence(&[split(llama3), bytes()]), false), Ok("smaug-bpe"));
        let qwen2 = llama3.replace("{1,3}", "");
        assert_eq!(identify(&sequence(&[split(&qwen2), bytes()]), false), Ok("qwen2"));
    }

    /// DeepSeek's file has line ends themselves where others have escapes.
    #[test]
    fn knows_deepseek_v3() {
        let text = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
        let steps = [split("\\p{N}{1,3}"), split("[一-龥\u{3040}-ゟ゠-ヿ]+"), split(text), bytes()];
        assert_eq!(identify(&sequence(&steps), false), Ok("deepseek-v3"));
        let error = identify(&sequence(&steps[..3]), true).unwrap_err();
        assert!(error.contains("ignore_merges = true"), "{error}");
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let error = identify(&sequence(&[split("\\w+|\\W+"), bytes()]), false).unwrap_err();
        assert!(error.contains(r"\w+|\W+"), "{error}");
        for step in [
            json!({"type": "ByteLevel", "add_prefix_space": true}),
            json!({"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "MergedWithPrevious", "invert": false}),
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": false}),
            json!({"type": "Whitespace"}),
            Value::Null,
        ] {
            let error = identify(&step, false).unwrap_err();
            assert!(error.contains("has a pre-tokenizer step"), "{error}");
        }
    }
}
