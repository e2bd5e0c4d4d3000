//! An allocation as rules that a person can read and edit: `REGEX=TYPE`, the first match counts.

use std::collections::BTreeMap;

use formats::OutputTensor;
use kernels::Format;

/// Rules that give each of these tensors its format: for every kind of tensor one for the format that most layers have, and
/// before it one for each other format, with its layers.
pub fn rules<'a>(choices: impl Iterator<Item = (&'a OutputTensor, &'static Format)>) -> Vec<String> {
    // Kind (the name around the layer's number) -> format -> layers.
    let mut order: Vec<(String, String)> = Vec::new();
    let mut kinds: BTreeMap<(String, String), BTreeMap<&'static str, Vec<u32>>> = BTreeMap::new();
    let mut rules = Vec::new();
    for (tensor, format) in choices {
        let split = tensor.layer.and_then(|layer| Some((layer, around(&tensor.name, layer)?)));
        let Some((layer, kind)) = split else {
            rules.push(format!("^{}$={}", regex::escape(&tensor.name), format.name));
            continue;
        };
        let formats = kinds.entry(kind.clone()).or_insert_with(|| {
            order.push(kind);
            BTreeMap::new()
        });
        formats.entry(format.name).or_default().push(layer);
    }
    for kind in &order {
        let (before, after) = (regex::escape(&kind.0), regex::escape(&kind.1));
        let mut formats: Vec<_> = kinds[kind].iter().collect();
        formats.sort_by_key(|(_, layers)| layers.len());
        let last = formats.pop();
        for (format, layers) in formats {
            let layers: Vec<String> = layers.iter().map(u32::to_string).collect();
            rules.push(format!("^{before}({}){after}$={format}", layers.join("|")));
        }
        rules.extend(last.map(|(format, _)| format!(r"^{before}\d+{after}$={format}")));
    }
    rules
}

/// What stands before and after the layer's number in a name.
fn around(name: &str, layer: u32) -> Option<(String, String)> {
    let number = format!(".{layer}.");
    let at = name.find(&number)?;
    Some((name[..=at].to_owned(), name[at + number.len() - 1..].to_owned()))
}

#[cfg(test)]
mod tests {
    use formats::{Content, output::Class};
    use kernels::table;

    use super::*;
    use crate::overrides::Overrides;

    fn tensor(name: &str, layer: Option<u32>) -> OutputTensor {
        let content = Content::Values(Vec::new());
        let name = name.to_owned();
        OutputTensor { name, shape: vec![256, 256], class: Class::Other, layer, quantizable: true, content }
    }

    #[test]
    fn the_rules_say_what_was_chosen() {
        let mut chosen = vec![(tensor("output.weight", None), "q6_k")];
        for layer in 0..12 {
            let down = if [0, 1, 11].contains(&layer) { "q6_k" } else { "q4_k" };
            chosen.push((tensor(&format!("blk.{layer}.ffn_down.weight"), Some(layer)), down));
            chosen.push((tensor(&format!("blk.{layer}.ffn_up.weight"), Some(layer)), "q4_k"));
        }
        let format = |name: &str| table::gguf(name).expect("known");
        let rules = rules(chosen.iter().map(|(tensor, name)| (tensor, format(name))));
        assert_eq!(
            rules,
            [
                r"^output\.weight$=q6_k",
                r"^blk\.(0|1|11)\.ffn_down\.weight$=q6_k",
                r"^blk\.\d+\.ffn_down\.weight$=q4_k",
                r"^blk\.\d+\.ffn_up\.weight$=q4_k",
            ]
        );
        let overrides = Overrides::gguf(&rules).expect("rules are overrides");
        for (tensor, name) in &chosen {
            assert_eq!(overrides.of(tensor), Some(format(name)), "{}", tensor.name);
        }
    }
}
