//! The files of a conversion with their headers alone and holes for all weights: what loaders say to them costs no conversion.
//!
//!     headers SOURCE FORMAT OUT.gguf

use std::{env, error::Error, fs::File, io::Write, path::Path};

use halfbyte_quantize::{
    job::Job,
    plan::{Container, Options},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [source, format, out] = &arguments[..] else { return Err("give: SOURCE FORMAT OUT.gguf".into()) };
    let options = Options { shard_size: Some(u64::MAX), ..Options::new(Container::Gguf, format) };
    let job = Job::plan(&Path::new(source).into(), Path::new(out), &options)?;
    for file in &job.layout.files {
        let mut writer = File::create(Path::new(out).with_file_name(&file.name))?;
        writer.write_all(&file.header)?;
        writer.set_len(file.len)?;
    }
    Ok(())
}
