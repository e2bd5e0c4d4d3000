//! Recipes over the tiny models: what is planned, written, edited and read again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use halfbyte_quantize::{
    Error, Given, RecipeFile,
    job::Job,
    plan::{Container, Options},
    progress::Silent,
    recipe::PlannedFor,
    run::{RunOptions, run},
};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name)
}

/// Everything that can be asked for.
fn options() -> Options {
    Options {
        overrides: vec![r"blk\.[01]\.attn_v=q8_0".into(), "ffn_down=q5_k".into()],
        shard_size: Some(1 << 20),
        shard_after: vec![2, 0],
        align: Some(4096),
        allow_nonfinite: true,
        target: Some(PlannedFor {
            name: "mac-128".into(),
            context: Some(8192),
            parallel: Some(1),
            kv: Some("f16".into()),
        }),
        revision: Some("0123abc".into()),
        ..Options::new(Container::Gguf, "Q4_K_M")
    }
}

fn planned(options: &Options) -> Job {
    Job::plan(&model("tiny-llama").into(), Path::new("out.gguf"), options).expect("plan")
}

fn read(text: &str) -> Result<Job, Box<Error>> {
    let file = RecipeFile::parse(Path::new("r.toml"), text.to_owned())?;
    Ok(file.plan(&model("tiny-llama").into(), Path::new("out.gguf"), Given::default())?)
}

/// What is said of a recipe that was changed; the line that it points at must hold `line`.
#[track_caller]
fn refused(text: &str, line: &str, parts: &[&str]) {
    let error = read(text).err().expect("an error");
    assert!(matches!(*error, Error::Recipe { .. }), "another error: {error}");
    let message = error.to_string();
    let number: usize = message
        .strip_prefix("r.toml, line ")
        .and_then(|rest| rest.split_once(':')?.0.parse().ok())
        .unwrap_or_else(|| panic!("no line in: {message}"));
    let found = text.lines().nth(number - 1).unwrap_or_default();
    assert!(found.contains(line), "points at `{found}`: {message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

#[test]
fn a_planned_recipe_reads_back_as_the_same_job() {
    let mlx = Options { shard_after: vec![1], ..Options::new(Container::Mlx, "4bit-g64") };
    for options in [options(), Options::new(Container::Gguf, "iq4_xs"), mlx] {
        let job = planned(&options);
        let text = job.recipe.to_toml();
        let again = read(&text).expect("its own recipe");
        assert_eq!(again.recipe.to_toml(), text);
        let headers = |job: &Job| job.layout.files.iter().map(|file| file.header.clone()).collect::<Vec<_>>();
        assert!(headers(&again) == headers(&job), "{text}");
        assert_eq!(again.layout.planes, job.layout.planes);
        assert_eq!(again.warnings, Vec::<String>::new());
    }
}

#[test]
fn the_same_bytes_with_the_options_and_with_the_recipe_made_of_them() {
    let dir = tempfile::tempdir().expect("dir");
    let bytes = |job: &Job| {
        let how = RunOptions { threads: 2, memory: 1 << 26, overwrite: false };
        run(job, how, None, &Silent, &AtomicBool::new(false)).expect("run");
        let read = |file: &formats::layout::OutputFile| {
            fs::read(job.destination.dir().join(&file.name)).expect("output")
        };
        job.layout.files.iter().map(read).collect::<Vec<_>>()
    };
    // Without their folders, which differ, both are called alike: shards state no name, but files are named.
    let out = |name: &str| {
        fs::create_dir(dir.path().join(name)).expect("folder");
        dir.path().join(name).join("m.gguf")
    };
    let job = Job::plan(&model("tiny-llama").into(), &out("a"), &options()).expect("plan");
    let path = dir.path().join("r.toml");
    fs::write(&path, job.recipe.to_toml()).expect("recipe");
    let again =
        RecipeFile::read(&path).expect("read").plan(&model("tiny-llama").into(), &out("b"), Given::default());
    assert!(bytes(&job) == bytes(&again.expect("plan")));
}

#[test]
fn files_end_behind_the_layers_that_are_asked_for() {
    for (container, format) in [(Container::Gguf, "q4_0"), (Container::Mlx, "4bit-g64")] {
        let job = planned(&Options { shard_after: vec![1], ..Options::new(container, format) });
        for (output, planes) in job.outputs.iter().zip(&job.layout.planes) {
            let is_second = output.layer.is_some_and(|layer| layer > 1)
                || ["output", "lm_head", "model.norm"].iter().any(|name| output.name.starts_with(name));
            assert!(planes.iter().all(|plane| plane.file == usize::from(is_second)), "{}", output.name);
        }
    }
    let error = Options { shard_after: vec![1, 4], ..Options::new(Container::Gguf, "q4_0") };
    let error = Job::plan(&model("tiny-llama").into(), Path::new("o"), &error).err().expect("no layer 4");
    assert!(error.to_string().contains("no layer 4, but 4"), "{error}");
}

#[test]
fn rules_are_edited_and_the_list_is_deleted() {
    let text = planned(&options()).recipe.to_toml();
    let edited = text.replace("attn_v=q8_0", "attn_v=q6_k");
    refused(
        &edited,
        "blk.0.attn_v.weight",
        &["listed as q8_0", "rules make it q6_k", "change the rule or delete the list `tensor`"],
    );
    let list = edited.find("tensor = [").expect("list");
    let job = read(&edited[..list]).expect("without the list");
    let choice = |job: &Job, name: &str| {
        job.recipe.tensor.iter().find(|tensor| tensor.name == name).expect("tensor").clone()
    };
    assert_eq!(choice(&job, "blk.0.attn_v.weight").format, "q6_k");
    assert_eq!(choice(&job, "blk.2.ffn_down.weight").format, "q5_k");

    // Only the lines that it is about, and sizes are whatever they are.
    let lines = edited.lines().filter(|line| !(line.contains("attn_v") && line.contains("type")));
    let fewer: String = lines.map(|line| format!("{line}\n")).collect();
    let fewer = fewer.replace("type = \"q5_k\", bytes = ", "type = \"Q5_K\", bytes = 1");
    assert_eq!(read(&fewer).expect("without two lines").recipe, job.recipe);
    refused(&text.replace("name = \"output.weight\"", "name = \"head\""), "\"head\"", &["no tensor head"]);
}

#[test]
fn a_short_recipe_will_do() {
    let job = read("container = \"gguf\"\nformat = \"q4_k_m\"\n").expect("plan");
    assert_eq!(job.recipe, planned(&Options::new(Container::Gguf, "q4_k_m")).recipe);
}

#[test]
fn another_source_is_named() {
    let text = planned(&options()).recipe.to_toml();
    let hint = "delete the list `source`";
    let more =
        text.replace("source = [", "source = [\n    { name = \"b\", bytes = 1, index_sha256 = \"\" },");
    refused(&more, "name = \"b\"", &["has no file b", hint]);
    let (bytes, hash) = {
        let source = &planned(&options()).recipe.source[0];
        (format!("bytes = {}", source.bytes), source.index_sha256.clone())
    };
    refused(&text.replace(&bytes, "bytes = 7"), "index_sha256", &["model.safetensors", "not 7", hint]);
    refused(&text.replace(&hash, "00"), "index_sha256", &["tensors of its model.safetensors", hint]);
    let other = text.replace("model.safetensors", "other.safetensors");
    refused(&other, "other", &["has no file other.safetensors"]);
    let start = text.find("source = [").expect("list");
    let end = start + text[start..].find("]\n").expect("end");
    read(&(text[..start].to_owned() + &text[end + 2..])).expect("any source");
}

#[test]
fn mistakes_point_at_their_line() {
    let text = planned(&options()).recipe.to_toml();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    refused(&with("align = 4096", "aligned = 4096"), "aligned", &["unknown field `aligned`"]);
    refused(&with("align = 4096", "align = \"4096\""), "align", &["invalid type: string"]);
    refused(&with("align = 4096", "align = 48"), "align", &["48 is no power of two"]);
    refused(
        &with("container = \"gguf\"", "container = \"ggml\""),
        "ggml",
        &["`gguf`, `mlx`, `compressed-tensors`"],
    );
    refused(&with("format = \"q4_k_m\"", "format = \"q4_x\""), "q4_x", &["unknown GGUF format `q4_x`"]);
    refused(&with("ffn_down=q5_k", "ffn_(=q5_k"), "ffn_(", &["unclosed group"]);
    refused(&with("ffn_down=q5_k", "ffn_down"), "\"ffn_down\"", &["has no `=`"]);
    refused(&with("ffn_down=q5_k", "ffn_down=q5_x"), "q5_x", &["unknown type `q5_x`"]);
    refused(&with("ffn_down=q5_k", "wo=q5_k"), "wo=", &["no tensor that can be quantized"]);
    refused(&with("shard_after = [0, 2]", "shard_after = [0,\n 9]"), " 9]", &["no layer 9"]);
    let aligned = Options { align: Some(64), ..Options::new(Container::Gguf, "mxfp4") };
    let mlx = planned(&aligned).recipe.to_toml().replace("container = \"gguf\"", "container = \"mlx\"");
    refused(&mlx, "align = 64", &["64 bytes"]);
    refused(&with("kv = \"f16\"", "cache = \"f16\""), "cache", &["unknown field `cache`"]);
    refused(&with("rules = [", "rules = [["), "", &[]);
    refused(&with(", index_sha256 = ", ", index = "), "model.safetensors", &["unknown field `index`"]);
    let nameless = with("name = \"token_embd.weight\", ", "");
    refused(&nameless, "bytes = ", &["missing field `name`"]);
    refused("# nothing\nformat = \"q4_0\"\n", "# nothing", &["missing field `container`"]);
}

#[test]
fn another_tool_is_warned_of() {
    let text = planned(&options()).recipe.to_toml();
    let job = read(&text.replace("tool = \"halfbyte ", "tool = \"halfbyte 9.")).expect("plan");
    assert!(job.warnings.iter().any(|warning| warning.contains("halfbyte 9.")), "{:?}", job.warnings);
}
