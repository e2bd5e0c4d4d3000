//! `halfbyte publish`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use hub::{
    Client, Manifest, RepoId, check, manifest,
    progress::Progress,
    publish::{self, MOST_INLINE, Published, Publisher, Wish},
    sign::{self, SecretKey},
    sums,
};
use quantize::outlet::Shipped;
use serde_json::{Value, json};

use crate::{
    args, check_verb,
    interrupt::interruptible,
    shrink::put,
    source,
    table::{print_json, table},
    text,
    transfers::Transfers,
};

/// Where the password of a secret key may stand, for scripts.
const PASSWORD: &str = "HALFBYTE_KEY_PASSWORD";

/// Where a model is published, and how.
pub struct To {
    /// The repository.
    pub repo: RepoId,
    private: bool,
    /// Whether the pull request is left open.
    pr: bool,
    sign_key: Option<PathBuf>,
}

impl To {
    /// As a command line says.
    pub fn new(repo: &str, private: bool, pr: bool, sign_key: Option<&Path>) -> Result<To> {
        let repo = RepoId::parse(repo.strip_prefix(hub::repo::PREFIX).unwrap_or(repo))?;
        Ok(To { repo, private, pr, sign_key: sign_key.map(Path::to_owned) })
    }

    /// Opens the publication of a job, which its recipe's hash names.
    pub fn open(
        &self,
        client: &Arc<Client>,
        job: &str,
        title: String,
        progress: &Arc<dyn Progress>,
    ) -> Result<Publisher> {
        let wish = Wish { private: self.private, job: job.to_owned(), title };
        Ok(Publisher::open(client, &self.repo, wish, progress)?)
    }

    /// Uploads a folder, signed or not, but for what is `gone` already, and makes it what the repository shows. Also gives what
    /// had to be uploaded.
    pub fn upload(
        &self,
        mut publisher: Publisher,
        folder: &Path,
        manifest: &Manifest,
        gone: &[Shipped],
    ) -> Result<(Published, Vec<String>)> {
        let (alone, others): (Vec<Upload>, Vec<Upload>) =
            uploads(folder, manifest, false)?.into_iter().partition(|file| file.alone);
        let mut sent = Vec::new();
        for file in alone {
            if gone.iter().any(|gone| gone.name == file.name) {
                publisher.expect(&file.name, file.bytes, &file.sha256)?;
            } else if publisher.put(&file.path, &file.name, file.bytes, &file.sha256)? {
                sent.push(file.name);
            }
        }
        let others: Vec<_> = others.into_iter().map(|file| (file.name, file.path)).collect();
        publisher.put_all(&others)?;
        Ok((publisher.finish(!self.pr)?, sent))
    }

    /// Signs the manifest, if there is a key. Gives the key's number.
    pub fn sign(&self, folder: &Path, manifest: &Manifest) -> Result<Option<String>> {
        let Some(path) = &self.sign_key else { return Ok(None) };
        let key = SecretKey::read(path, password)?;
        sign(folder, &key, &self.repo, manifest)?;
        Ok(Some(key.public()?.id().to_owned()))
    }
}

/// What a publication is called.
pub fn title(name: &str, container: &str, format: &str, bits_per_weight: f64) -> String {
    format!("{} in {container} {format}, {bits_per_weight:.2} bits per weight", check_verb::clean(name))
}

/// Checks, signs, shows, uploads.
pub fn run(args: &args::Publish) -> Result<()> {
    let to = To::new(&args.repo, args.private, args.pr, args.sign_key.as_deref())?;
    let repo = &to.repo;
    let progress: Arc<dyn Progress> = Arc::new(Transfers::new());
    let mut report = check::folder(&args.path, None, &*interruptible()?, &*progress)?;
    if !report.holds() {
        if args.json { print_json(&check_verb::report_json(&report)) } else { check_verb::print(&report) }?;
        eprintln!("nothing is uploaded");
    }
    check_verb::holds(&report)?;
    let Some(manifest) = report.manifest.take() else { bail!("{} has no manifest", report.place) };
    for warning in &report.warnings {
        eprintln!("warning: {}", check_verb::clean(warning));
    }
    match manifest.verified() {
        Err(problem) if !args.unverified => bail!(
            "{}: {problem}. Verify what is published (halfbyte shrink does, unless --no-verify), or say --unverified",
            report.place
        ),
        _ => {}
    }
    let client = source::client()?;
    if args.dry_run {
        return dry_run(args, &client, repo, &uploads(&args.path, &manifest, args.sign_key.is_some())?);
    }
    let signed_by = to.sign(&args.path, &manifest)?;
    let uploads = uploads(&args.path, &manifest, false)?;
    if !args.json {
        show(&uploads, repo, |_| "")?;
    }

    let title = title(&manifest.source.name, &manifest.container, &manifest.format, manifest.bits_per_weight);
    let publisher = to.open(&client, &manifest.recipe.sha256, title, &progress)?;
    let (published, sent) = to.upload(publisher, &args.path, &manifest, &[])?;
    if args.json {
        return print_json(&json!({
            "repo": repo.to_string(),
            "commit": published.commit,
            "url": published.url,
            "pull_request": published.pull_request,
            "merged": !args.pr && published.pull_request.is_some(),
            "uploaded": sent,
            "files": uploads.iter().map(Upload::json).collect::<Vec<_>>(),
            "signed_by": signed_by,
        }));
    }
    tell(args.pr, repo, &published)
}

/// A file that is to be uploaded.
struct Upload {
    name: String,
    path: PathBuf,
    bytes: u64,
    sha256: String,
    /// Whether it gets a commit of its own: what is large, or holds weights.
    alone: bool,
}

impl Upload {
    fn json(&self) -> Value {
        json!({ "name": self.name, "bytes": self.bytes, "sha256": self.sha256 })
    }
}

/// All that the manifest lists, and the lists themselves; the signature too if there is one or `will_sign`.
fn uploads(folder: &Path, manifest: &Manifest, will_sign: bool) -> Result<Vec<Upload>> {
    let model: Vec<&str> = manifest.model_files().iter().map(|file| file.name.as_str()).collect();
    let mut uploads: Vec<Upload> = manifest
        .files
        .iter()
        .map(|file| Upload {
            name: file.name.clone(),
            path: folder.join(&file.name),
            bytes: file.bytes,
            sha256: file.sha256.clone(),
            alone: model.contains(&file.name.as_str()) || file.bytes > MOST_INLINE,
        })
        .collect();
    for name in [manifest::NAME, sums::NAME, sign::NAME] {
        let path = folder.join(name);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name == sign::NAME => {
                if !will_sign {
                    continue;
                }
                Vec::new()
            }
            text => text.with_context(|| format!("can't read {}", path.display()))?,
        };
        uploads.push(Upload {
            name: name.to_owned(),
            path,
            bytes: text.len() as u64,
            sha256: hub::digest::of_bytes(&text),
            alone: false,
        });
    }
    Ok(uploads)
}

/// Asks for the password of a secret key.
fn password() -> hub::Result<String> {
    if let Some(password) = std::env::var(PASSWORD).ok().filter(|password| !password.is_empty()) {
        return Ok(password);
    }
    rpassword::prompt_password("Password of the key: ").map_err(|error| {
        hub::Error::Usage(format!(
            "the key has a password, and no terminal to ask for it ({error}): set {PASSWORD}"
        ))
    })
}

/// Signs the manifest, unless it has this very signature.
fn sign(folder: &Path, key: &SecretKey, repo: &RepoId, manifest: &Manifest) -> Result<()> {
    let (text, signature) = (folder.join(manifest::NAME), folder.join(sign::NAME));
    let message = fs::read(&text).with_context(|| format!("can't read {}", text.display()))?;
    let comment = format!("halfbyte {repo} recipe {}", manifest.recipe.sha256);
    let public = key.public()?;
    let before = fs::read_to_string(&signature).ok();
    if before.is_some_and(|before| public.verify(&message, &before).as_ref() == Ok(&comment)) {
        return Ok(());
    }
    put(&signature, key.sign(&message, &comment)?.as_bytes())
}

/// The table of what is uploaded, with what `state` says of each file.
fn show<'a>(uploads: &[Upload], repo: &RepoId, state: impl Fn(&Upload) -> &'a str) -> Result<()> {
    let mut table = table(&["file", "bytes", "how", ""], &[1]);
    for file in uploads {
        let how = if file.alone { "in a commit of its own" } else { "in one commit with the rest" };
        table.add_row([check_verb::clean(&file.name).as_str(), &file.bytes.to_string(), how, state(file)]);
    }
    let total = uploads.iter().map(|file| file.bytes).sum();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{table}\n\n{repo}: {} in {} files", text::bytes(total), uploads.len())?;
    Ok(())
}

/// Shows what would be uploaded, and what of it is there.
fn dry_run(args: &args::Publish, client: &Client, repo: &RepoId, uploads: &[Upload]) -> Result<()> {
    let tree = if client.settings().offline {
        Err("HF_HUB_OFFLINE is set".to_owned())
    } else {
        publish::present(client, repo).map_err(|error| error.to_string())
    };
    let there = match &tree {
        Ok(Some(tree)) => {
            let same = |file: &Upload| match tree.find(&file.name) {
                Some(remote) => publish::is_same(client, remote, &file.path, file.bytes, &file.sha256),
                None => Ok(false),
            };
            // What is still to be signed is not there.
            let present = |file: &Upload| if file.path.exists() { same(file) } else { Ok(false) };
            uploads.iter().map(present).collect::<hub::Result<Vec<bool>>>()?
        }
        _ => vec![false; uploads.len()],
    };
    let is_there =
        |file: &Upload| uploads.iter().zip(&there).any(|(other, there)| other.name == file.name && *there);
    if args.json {
        let file = |file: &Upload| {
            let mut json = file.json();
            json["there"] = is_there(file).into();
            json
        };
        return print_json(&json!({
            "repo": repo.to_string(),
            "exists": tree.as_ref().ok().map(Option::is_some),
            "files": uploads.iter().map(file).collect::<Vec<_>>(),
        }));
    }
    show(uploads, repo, |file| if is_there(file) { "is there already" } else { "" })?;
    match tree {
        Ok(Some(_)) => {}
        Ok(None) => println!("there is no such repository yet, or none that the token may see"),
        Err(problem) => println!("what is there already is not known: {problem}"),
    }
    Ok(())
}

/// Says where it is now.
pub fn tell(pr: bool, repo: &RepoId, published: &Published) -> Result<()> {
    let Published { commit, url, pull_request } = published;
    let mut out = std::io::stdout().lock();
    match pull_request {
        None => writeln!(out, "nothing to do: {repo} has it all at commit {commit}")?,
        Some(number) if pr => {
            writeln!(out, "uploaded as pull request {number}, which is left open: {url}\ncommit {commit}")?;
        }
        Some(_) => writeln!(out, "published: {url}\ncommit {commit}")?,
    }
    writeln!(out, "check it: halfbyte check {repo}@{commit}")?;
    Ok(())
}
