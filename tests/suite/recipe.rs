//! `halfbyte quantize --recipe`.

use std::fs;

use crate::tool::{fails, halfbyte, hashes, model, quantize, run};

#[test]
fn a_recipe_does_what_the_options_do() {
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name);
    fs::write(
        path("r.toml"),
        "container = \"gguf\"\nformat = \"q4_0\"\nalign = 64\nrules = ['attn_v=q8_0', '^output=bf16']\n",
    )
    .expect("recipe");
    let recipe = |out: &str| {
        let mut command = halfbyte(&["quantize"]);
        command.arg(model("tiny-llama")).arg("--recipe").arg(path("r.toml")).arg("--out").arg(path(out));
        command
    };
    run(&mut recipe("a.gguf"));
    let mut options = quantize(&model("tiny-llama"), "gguf", "q4_0", &path("b.gguf"));
    run(options.args(["--align", "64", "--tensor", "attn_v=q8_0", "--tensor", "^output=bf16"]));
    assert_eq!(hashes(&path("a.gguf"))[0].1, hashes(&path("b.gguf"))[0].1);

    let text = fs::read_to_string(path("r.toml")).expect("recipe");
    fs::write(path("r.toml"), text.replace("q8_0", "q8_9")).expect("edit");
    let message = fails(&mut recipe("c.gguf"), 2);
    assert!(message.contains("r.toml, line 4: ") && message.contains("unknown type `q8_9`"), "{message}");
    let message = fails(recipe("c.gguf").args(["--format", "q4_0"]), 2);
    assert!(message.contains("--recipe"), "{message}");
    assert!(!path("c.gguf").exists());
}
