//! The built-in text for calibration.

/// A small mixed text: 121,603 bytes, its kinds alternating every few paragraphs, so that its first part is mixed as well. It
/// is in the public domain or was written for this project and given to it (CC0 1.0), but for the Rust: extracts of this
/// repository's own sources, under its licence (Apache-2.0). Where it comes from:
///
/// - English prose and verse, 27 extracts: Jane Austen, Emma (1815); the King James Bible, Genesis (1611); William Shakespeare,
///   The Taming of the Shrew, The Tempest and others (before 1623). Public domain everywhere.
/// - Other languages, literature in the public domain: Goethe, Faust (1808); Proust, Du côté de chez Swann (1913, one sentence);
///   Cervantes, Don Quijote (1605); Dante, Inferno; Camões, Os Lusíadas (1572); Mickiewicz, Pan Tadeusz (1834); Tolstoy, Anna
///   Karenina (1878); Pushkin, Winter Morning (1829); Shevchenko, Testament (1845); Daodejing, Analects, Li Bai; Natsume Sōseki,
///   I Am a Cat (1905); The Tale of the Heike; Kim Sowol, Azaleas (1925); Genesis in Hebrew; Tagore, Our Little River; Tirukkural;
///   Ersoy, İstiklal Marşı (1921); Homer; Caesar; Virgil; Andersen, The Ugly Duckling (1843); Kalevala (1849); Bjørnson, Ja, vi
///   elsker (1859); Hávamál. Their authors died in or before 1941.
/// - Other languages, statutes and declarations, which are free of copyright: article 1 of the Universal Declaration of Human
///   Rights (1948; French, Arabic, Hindi), article 1 of the Dutch constitution.
/// - All other prose in them (German, French, Spanish, Italian, Portuguese, Dutch, Polish, Russian, Ukrainian, Czech, Hungarian,
///   Romanian, Chinese, Japanese, Korean, Arabic, Hebrew, Persian, Hindi, Turkish, Greek, Vietnamese, Indonesian, Thai, Swahili,
///   Swedish): written for this project.
/// - Code (Python, C, C++, CUDA, TypeScript, SQL, Go, HTML and CSS, shell, Java, Haskell, Scheme, Ruby, Kotlin, assembly), JSON,
///   YAML, CSV, Markdown, logs: written for this project.
/// - Mathematics (worked problems and proofs, plain and in LaTeX), physics, dialogues, letters, explanations: written for this
///   project.
///
/// It shares no run of eight words with the text that the benchmarks evaluate on.
pub const DEFAULT: &str = include_str!("default.txt");

#[cfg(test)]
mod tests {
    use super::DEFAULT;

    #[test]
    fn it_is_mixed_and_so_is_its_first_part() {
        for text in [DEFAULT, &DEFAULT[..DEFAULT.floor_char_boundary(DEFAULT.len() * 6 / 10)]] {
            for sample in
                ["Emma", "fn ", "def ", "\\begin{", "Assistant:", " und ", " que ", " и ", "不", "です"]
            {
                assert!(text.contains(sample), "{sample} in the first {} bytes", text.len());
            }
        }
        assert!((100_000..250_000).contains(&DEFAULT.len()), "{} bytes", DEFAULT.len());
    }
}
