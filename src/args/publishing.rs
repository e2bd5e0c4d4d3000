//! What `publish` and `check` take.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// Where `shrink` publishes.
#[derive(ClapArgs)]
pub struct ToHub {
    /// Publish it in this repository, which is made if there is none; with --disk each finished file is uploaded and dropped while the
    /// next ones are made
    #[arg(long, value_name = "OWNER/NAME")]
    pub publish: Option<String>,
    /// Make the repository private; one that is there must be
    #[arg(long, requires = "publish")]
    pub private: bool,
    /// Leave the pull request open, for others to look at and merge
    #[arg(long, requires = "publish")]
    pub pr: bool,
    /// Sign with this secret key of minisign's; its password is asked for, or taken from HALFBYTE_KEY_PASSWORD
    #[arg(long, value_name = "FILE", requires = "publish")]
    pub sign_key: Option<PathBuf>,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte publish ./llama-70b --repo me/Llama-3.1-70B-halfbyte --dry-run
  HF_TOKEN=... halfbyte publish ./llama-70b --repo me/Llama-3.1-70B-halfbyte
  halfbyte publish ./llama-70b --repo team/Llama-3.1-70B-halfbyte --private --pr
  halfbyte publish ./llama-70b --repo me/Llama-3.1-70B-halfbyte --sign-key ~/.minisign/minisign.key

Before anything is uploaded, every file is checked against its SHA-256. Files go into a pull request, which is merged when all of
them are there: the main branch never shows half a model. A run that is killed or stopped goes on where it was when the same command
is run again. Needs a token that may write, in HF_TOKEN or where `hf auth login` puts it.
Exit codes: 0 published, 1 failed or damaged, 2 wrong usage, 130 interrupted and resumable.")]
pub struct Publish {
    /// The folder that `halfbyte shrink` made
    pub path: PathBuf,
    /// The repository, which is made if there is none
    #[arg(long, value_name = "OWNER/NAME")]
    pub repo: String,
    /// Make the repository private; one that is there must be
    #[arg(long)]
    pub private: bool,
    /// Leave the pull request open, for others to look at and merge
    #[arg(long)]
    pub pr: bool,
    /// Check the folder and show what would be uploaded; upload and sign nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Publish what was not verified
    #[arg(long)]
    pub unverified: bool,
    /// Sign with this secret key of minisign's; its password is asked for, or taken from HALFBYTE_KEY_PASSWORD
    #[arg(long, value_name = "FILE")]
    pub sign_key: Option<PathBuf>,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs)]
#[command(after_help = "\
Examples:
  halfbyte check ./llama-70b
  halfbyte check someone/Llama-3.1-70B-halfbyte
  halfbyte check hf:someone/Llama-3.1-70B-halfbyte@v1 --json
  halfbyte check ./llama-70b --key RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3

A folder's bytes are read and hashed. Of a repository only small files are fetched: for the large ones the Hub states the
SHA-256. What does not hold is named with its file and tensor.
Exit codes: 0 all holds, 1 something does not, 2 wrong usage, 130 interrupted.")]
pub struct Check {
    /// A folder that `halfbyte shrink` made, or a whole copy of one, or a repository: OWNER/NAME, OWNER/NAME@REVISION
    #[arg(value_name = "PATH|REPO")]
    pub path: PathBuf,
    /// Whose signature it has to have: minisign's public key, or the file that it is in
    #[arg(long, value_name = "FILE|KEY")]
    pub key: Option<String>,
    /// Print the result as JSON on standard output
    #[arg(long)]
    pub json: bool,
}
