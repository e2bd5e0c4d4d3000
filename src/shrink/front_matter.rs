//! The front matter of a model card, which the Hub reads: YAML between two lines of `---`
//! (<https://huggingface.co/docs/hub/model-cards>).

use formats::{Source, model_card::ModelCard};
use hub::RepoId;

/// The front matter. `card` is the source's own; `beside` are the files that lie beside the new one.
pub fn front_matter(source: &Source, card: &ModelCard, library: &str, beside: &[String]) -> String {
    let mut lines = vec!["---".to_owned()];
    let mut put = |key: &str, value: &str| lines.push(format!("{key}: {}", scalar(value)));
    for key in ["license", "license_name"] {
        if let Some(value) = card.text(key) {
            put(key, value);
        }
    }
    if let Some(link) = card.text("license_link").and_then(|link| license_link(source, link, beside)) {
        put("license_link", &link);
    }
    // The Hub refuses a card whose base model can't be one of its repositories.
    if let Some(base) = base_model(source, card) {
        put("base_model", &base);
        put("base_model_relation", "quantized");
    }
    put("library_name", library);
    put("pipeline_tag", "text-generation");
    lines.push(format!("tags:\n- {library}\n- halfbyte\nquantized_by: halfbyte\n---\n\n"));
    lines.join("\n")
}

/// A link that also holds where the new card lies: an address, a file that lies beside it, or one of the source's repository.
fn license_link(source: &Source, link: &str, beside: &[String]) -> Option<String> {
    if link.starts_with("https://") || beside.iter().any(|name| name == link) {
        return Some(link.to_owned());
    }
    let origin = source.origin().filter(|_| hub::repo::is_safe(link))?;
    Some(format!("https://huggingface.co/{}/blob/{}/{link}", origin.repo, origin.commit))
}

/// The repository that the source is, or what its card says that it was made of, or what it is called.
fn base_model(source: &Source, card: &ModelCard) -> Option<String> {
    if let Some(origin) = source.origin() {
        return Some(origin.repo.clone());
    }
    let own = card.list("base_model").first().map(String::as_str);
    let name = source.name();
    let found = own.into_iter().chain(card.heading()).chain([name.as_str()]).find(|id| may_be_repository(id));
    found.map(str::to_owned)
}

/// `owner/name`, or the name alone, as the oldest repositories have it.
fn may_be_repository(id: &str) -> bool {
    RepoId::parse(id).is_ok() || RepoId::parse(&format!("owner/{id}")).is_ok()
}

/// A YAML scalar that is read as this very text, whatever stands in it.
pub fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/-+".contains(c);
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        // What YAML takes for something else than a text.
        && !["true", "false", "yes", "no", "on", "off", "y", "n", "null"]
            .iter()
            .any(|word| text.eq_ignore_ascii_case(word));
    if is_plain {
        return text.to_owned();
    }
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        // Those that end a line in YAML among them.
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
            format!("\\u{:04X}", u32::from(c))
        }
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use formats::source::Origin;

    use super::*;

    fn card(folder: &Path, front: &str) -> ModelCard {
        std::fs::write(folder.join("README.md"), format!("---\n{front}\n---\n# Title\n")).expect("card");
        ModelCard::read(folder).expect("card")
    }

    fn lines(text: &str) -> Vec<&str> {
        text.lines().collect()
    }

    #[test]
    fn what_the_source_says_of_its_license_is_carried_over() {
        let dir = tempfile::tempdir().expect("dir");
        let front = "license: other\nlicense_name: deepseek\nlicense_link: LICENSE-MODEL\nbase_model: a/base";
        let card = card(dir.path(), front);
        let local = Source::from(PathBuf::from("/models/x"));
        let text = front_matter(&local, &card, "gguf", &["LICENSE-MODEL".into()]);
        assert_eq!(
            lines(&text)[..8],
            [
                "---",
                "license: other",
                "license_name: deepseek",
                "license_link: LICENSE-MODEL",
                "base_model: a/base",
                "base_model_relation: quantized",
                "library_name: gguf",
                "pipeline_tag: text-generation",
            ]
        );
        assert!(!front_matter(&local, &card, "gguf", &[]).contains("license_link"), "it would lead nowhere");
        let commit = "c".repeat(40);
        let known = local.of(Origin { repo: "o/x".into(), commit: commit.clone() });
        let text = front_matter(&known, &card, "mlx", &[]);
        assert!(
            text.contains(&format!(
                "license_link: \"https://huggingface.co/o/x/blob/{commit}/LICENSE-MODEL\"\n"
            )),
            "{text}"
        );
        assert!(text.contains("\nbase_model: o/x\n"), "{text}");
    }

    #[test]
    fn a_base_model_can_be_a_repository_or_is_left_out() {
        let dir = tempfile::tempdir().expect("dir");
        let none = card(dir.path(), "base_model: /home/me/models/x");
        let of = |path: &str| base_model(&Source::from(PathBuf::from(path)), &ModelCard::default());
        assert_eq!(of("/models/Qwen3-8B").as_deref(), Some("Qwen3-8B"));
        assert_eq!(of("/models/my model (2)"), None);
        assert_eq!(base_model(&Source::from(PathBuf::from("/m/x y")), &none).as_deref(), Some("Title"));
    }

    #[test]
    fn hostile_texts_stay_within_their_quotes() {
        let dir = tempfile::tempdir().expect("dir");
        let hostile = "license: mit # \"x\"\nlicense_name: a: [b\nlicense_link: https://x/\u{2028}y: z";
        let card = card(dir.path(), hostile);
        let source = Source::from(PathBuf::from("/m/a\nlicense: evil\n---\n# b"));
        let text = front_matter(&source, &card, "gguf", &[]);
        assert_eq!(text.matches("---").count(), 2, "{text}");
        assert!(lines(&text).contains(&"license: \"mit # \\\"x\\\"\""), "{text}");
        assert!(lines(&text).contains(&"license_name: \"a: [b\""), "{text}");
        assert!(lines(&text).contains(&"license_link: \"https://x/\\u2028y: z\""), "{text}");
        assert!(!text.contains("evil"), "{text}");
        assert_eq!(scalar("a\nb\u{85}"), "\"a\\u000Ab\\u0085\"");
        for word in ["true", "No", "null", "1.5", "- a", "~", "", "a b", "@x"] {
            assert!(scalar(word).starts_with('"'), "{word}");
        }
        assert_eq!((scalar("apache-2.0").as_str(), scalar("o/n").as_str()), ("apache-2.0", "o/n"));
    }
}
