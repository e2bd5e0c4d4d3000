//! llama.cpp's pre-tokenizers (`tokenizer.ggml.pre`), for vocabularies of the kind `gpt2`: how text is cut into words before
//! tokens are merged within each. (`llama_vocab::impl::load` and `llm_tokenizer_bpe` in `llama-vocab.cpp`.)

use formats::tokenizer::pre;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pre {
    /// Regular expressions, each of which cuts the pieces that the one before has left.
    pub rules: &'static [&'static str],
    /// Whether a word that is a token as a whole is taken as it is.
    pub ignore_merges: bool,
    /// Whether a text gets the BOS token where the metadata doesn't say.
    pub adds_bos: bool,
    /// Whether tokens are spelled in plain text with `▁` for spaces, not in GPT-2's alphabet of bytes.
    pub plain: bool,
}

/// GPT-2's rule without its last alternative, which takes what is left between matches anyway.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];
const FALCON: &[&str] = &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"];
/// As in the tokenizer that comes with the model (`tokenization_kimi.py`).
const KIMI_K2: &[&str] = &[
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];
const LINES: &[&str] = &[r"[^\n]+|\n+"];

/// Names that share the rules of another.
const ALIASES: &[(&str, &[&str])] = &[
    (
        "gpt-2",
        &[
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
        ],
    ),
    ("smollm", &["starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"]),
    ("llama-bpe", &["llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"]),
    ("smaug-bpe", &["dbrx", "glm4", "chatglm-bpe"]),
    (
        "qwen2",
        &["stablelm2", "deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "solar-open", "grok-2", "f2llmv2"],
    ),
    ("gpt-4o", &["llama4", "kanana2", "talkie", "minimax-m2"]),
    ("deepseek-v3", &["hunyuan-dense", "joyai-llm", "hy_v4"]),
    ("bailingmoe", &["bailingmoe2", "llada-moe"]),
];

/// What `name` stands for; `None` if it isn't known here.
pub(super) fn find(name: &str) -> Option<Pre> {
    let of = ALIASES.iter().find_map(|(of, names)| names.contains(&name).then_some(*of));
    let name = of.unwrap_or(name);
    let plain = matches!(name, "gemma4" | "sarvam-moe");
    let rules = match name {
        "default" => DEFAULT,
        "falcon" => FALCON,
        "kimi-k2" => KIMI_K2,
        _ if plain => LINES,
        _ => pre::rules(name)?,
    };
    let adds_bos = matches!(name, "llama-bpe" | "tekken" | "gemma4");
    Some(Pre { rules, ignore_merges: matches!(name, "llama-bpe" | "tekken"), adds_bos, plain })
}

#[cfg(test)]
mod tests {
    use tokenizers::SplitDelimiterBehavior;
    use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

    use super::*;

    #[test]
    fn names_of_llama_cpp_are_known() {
        for (name, ignore_merges, adds_bos) in [
            ("gpt-2", false, false),
            ("smollm", false, false),
            ("llama-bpe", true, true),
            ("lfm2", true, true),
            ("tekken", true, true),
            ("gpt-4o", false, false),
            ("deepseek-v3", false, false),
            ("default", false, false),
        ] {
            let pre = find(name).expect(name);
            assert_eq!(
                (pre.ignore_merges, pre.adds_bos, pre.plain),
                (ignore_merges, adds_bos, false),
                "{name}"
            );
        }
        assert_eq!(find("glm4"), find("smaug-bpe"));
        assert!(find("gemma4").is_some_and(|pre| pre.plain && pre.adds_bos));
        assert_eq!(find("gpt-5"), None);
    }

    #[test]
    fn all_rules_are_regular_expressions() {
        let aliases = ALIASES.iter().flat_map(|(name, others)| others.iter().chain([name]));
        let own = [
            "default",
            "falcon",
            "kimi-k2",
            "gemma4",
            "llama-bpe",
            "smaug-bpe",
            "qwen35",
            "tekken",
            "seed-coder",
        ];
        for name in aliases.copied().chain(own).chain(["deepseek-llm", "deepseek-coder"]) {
            for rule in find(name).unwrap_or_else(|| panic!("{name}")).rules {
                let pattern = SplitPattern::Regex((*rule).to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                assert!(split.is_ok(), "{name}: {rule}");
            }
        }
    }
}
