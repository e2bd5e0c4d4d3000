//! Files that are taken away while the rest is written: the disk never holds more than it may, and a run that was stopped goes on
//! without what was taken.

mod stack;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use halfbyte_quantize::{
    Error, Result,
    job::Job,
    journal::Entry,
    outlet::{Outlet, Shipped},
    progress::Silent,
    recipe::hex,
    run::{Outcome, forget, run},
};
use kernels::{Format, table};
use sha2::{Digest, Sha256};

use stack::{Files, STACKS, Watch, by_layer, job, lines, options, output};

/// Copies files to another folder.
struct Elsewhere<'a> {
    room: u64,
    partial: PathBuf,
    taken: Mutex<Vec<(Shipped, Vec<u8>)>>,
    /// How many it takes before it fails.
    good: AtomicUsize,
    /// Waits for this before it fails.
    wait: Option<&'a AtomicBool>,
}

impl Elsewhere<'_> {
    fn new(job: &Job, room: u64) -> Elsewhere<'static> {
        Elsewhere {
            room,
            partial: job.destination.partial(),
            taken: Mutex::default(),
            good: AtomicUsize::new(usize::MAX),
            wait: None,
        }
    }

    fn names(&self) -> Vec<String> {
        self.taken.lock().expect("no panic").iter().map(|(file, _)| file.name.clone()).collect()
    }
}

impl Outlet for Elsewhere<'_> {
    fn room(&self) -> u64 {
        self.room
    }

    fn take(&self, path: &Path, file: &Shipped) -> Result<()> {
        if let Some(wait) = self.wait {
            while !wait.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if self.good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(Error::Usage("the line is cut".into()));
        }
        // Whoever writes meanwhile may make a file while this counts.
        let there: u64 = fs::read_dir(&self.partial)
            .expect("partial")
            .filter_map(|entry| entry.ok().filter(|e| e.file_name().to_string_lossy().starts_with("model")))
            .filter_map(|entry| entry.metadata().ok())
            .map(|metadata| metadata.len())
            .sum();
        assert!(there <= self.room, "{there} bytes of files where {} may be", self.room);
        let bytes = fs::read(path).expect("the whole file");
        assert_eq!((file.bytes, &file.sha256), (bytes.len() as u64, &hex(&Sha256::digest(&bytes))));
        self.taken.lock().expect("no panic").push((file.clone(), bytes));
        Ok(())
    }
}

fn q4_0() -> &'static Format {
    table::gguf("q4_0").expect("known")
}

/// Files and entries of a run that ships nothing.
fn local(format: &'static Format, files: Files) -> (Vec<Vec<u8>>, Vec<Entry>) {
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), format, files);
    let Ok(Outcome::Written { entries, shipped, .. }) = run(&job, options(), None, &Silent, &watch.cancel)
    else {
        panic!("written")
    };
    assert_eq!(shipped, []);
    (output(job.destination.dir()), entries)
}

fn largest(job: &Job) -> u64 {
    job.layout.files.iter().map(|file| file.len).max().expect("files")
}

type Ended = Result<(Vec<Entry>, Vec<Shipped>, usize), Box<Error>>;

fn ship(job: &Job, outlet: &dyn Outlet, watch: &Watch) -> Ended {
    watch.cancel.store(false, Ordering::SeqCst);
    match run(job, options(), Some(outlet), &Silent, &watch.cancel) {
        Ok(Outcome::Written { entries, shipped, resumed, .. }) => Ok((entries, shipped, resumed)),
        Ok(Outcome::AlreadyThere) => panic!("an outlet leaves nothing there"),
        Err(error) => Err(Box::new(error)),
    }
}

/// That what was taken are the files of a run that ships nothing.
fn same(job: &Job, outlet: &Elsewhere<'_>, shipped: &[Shipped], files: &[Vec<u8>]) {
    let taken = outlet.taken.lock().expect("no panic");
    let taken: HashMap<&str, &(Shipped, Vec<u8>)> =
        taken.iter().map(|taken| (taken.0.name.as_str(), taken)).collect();
    assert_eq!(shipped.len(), 2);
    for (at, file) in shipped.iter().enumerate() {
        assert_eq!(file.name, job.layout.files[at].name);
        let (told, bytes) = taken[file.name.as_str()];
        assert_eq!(told, file);
        assert!(*bytes == files[at], "{}", file.name);
    }
    assert_eq!(fs::read(job.destination.dir().join("config.json")).expect("side file"), b"{}");
    assert_eq!(fs::read_dir(job.destination.dir()).expect("out").count(), 1, "nothing but the side file");
}

#[test]
fn the_disk_holds_one_file_at_a_time() {
    let (files, entries) = local(q4_0(), by_layer);
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), q4_0(), by_layer);
    let outlet = Elsewhere::new(&job, largest(&job));
    let (found, shipped, resumed) = ship(&job, &outlet, &watch).expect("shipped");
    assert!(found == entries && resumed == 0);
    same(&job, &outlet, &shipped, &files);

    // Again, until what follows is done: nothing is read or taken.
    *watch.log() = stack::Log::default();
    let (again, shipped_again, resumed) = ship(&job, &outlet, &watch).expect("at once");
    assert_eq!((again, shipped_again, resumed), (entries, shipped, job.outputs.len()));
    assert!(watch.log().read.is_empty() && outlet.names().len() == 2);
    let error =
        run(&job, options(), None, &Silent, &watch.cancel).expect_err("its files are gone").to_string();
    assert!(error.contains("taken away"), "{error}");
    forget(&job).expect("forgotten");
    assert!(!job.destination.partial().exists());
    forget(&job).expect("nothing left");
}

#[test]
fn what_was_taken_is_not_made_again() {
    let (files, entries) = local(q4_0(), by_layer);
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), q4_0(), by_layer);
    let outlet = Elsewhere::new(&job, largest(&job));
    for (good, taken) in [(0, 0), (1, 1), (0, 1)] {
        outlet.good.store(good, Ordering::SeqCst);
        let error = ship(&job, &outlet, &watch).expect_err("the line is cut").to_string();
        assert_eq!(error, "the line is cut");
        assert_eq!(lines(&job, "shipped"), taken);
        assert_eq!(job.destination.partial().join(&job.layout.files[0].name).exists(), taken == 0);
    }
    outlet.good.store(usize::MAX, Ordering::SeqCst);
    let (found, shipped, resumed) = ship(&job, &outlet, &watch).expect("the rest");
    assert!(found == entries && resumed >= 4, "{resumed}");
    assert!(watch.log().read.iter().all(|&id| job.source.tensors()[id].name.starts_with('1')));
    same(&job, &outlet, &shipped, &files);
}

#[test]
fn files_that_are_begun_together_need_room_together() {
    // Gates in the first file, the rest in the second.
    fn crosswise(tensor: usize, _: usize) -> usize {
        usize::from(![1, 4].contains(&tensor))
    }
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), q4_0(), crosswise);
    let needed = job.layout.files[0].len + job.layout.files[1].len;
    let outlet = Elsewhere::new(&job, needed - 1);
    match *ship(&job, &outlet, &watch).expect_err("one byte too little") {
        Error::Room { needed: said, room, .. } => assert_eq!((said, room), (needed, needed - 1)),
        other => panic!("{other}"),
    }
    assert!(watch.log().read.is_empty());
    let outlet = Elsewhere::new(&job, needed);
    ship(&job, &outlet, &watch).expect("enough room");
}

#[test]
fn a_tensor_may_lie_half_in_a_file_that_is_gone() {
    // The first gates' codes in the first file, everything else in the second.
    fn split(tensor: usize, plane: usize) -> usize {
        usize::from(![0, 1].contains(&tensor) || plane > 0)
    }
    let format = table::mlx("4bit-g64").expect("known");
    let (files, entries) = local(format, split);
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), format, split);
    let outlet = Elsewhere::new(&job, job.file_bytes());
    outlet.good.store(1, Ordering::SeqCst);
    ship(&job, &outlet, &watch).expect_err("the line is cut");
    assert_eq!(outlet.names(), ["model-0.safetensors"]);
    let path = job.destination.partial().join(&job.layout.files[1].name);
    let mut bytes = fs::read(&path).expect("file");
    bytes[job.layout.planes[STACKS[0]][1].offset as usize] ^= 1;
    fs::write(&path, bytes).expect("damage");
    outlet.good.store(usize::MAX, Ordering::SeqCst);
    let (found, shipped, _) = ship(&job, &outlet, &watch).expect("the rest");
    assert!(found == entries);
    same(&job, &outlet, &shipped, &files);
    assert_eq!(watch.log().steps.len(), 1, "the damaged expert");
}

#[test]
fn what_was_begun_without_an_outlet_goes_on_with_one() {
    let (files, _) = local(q4_0(), by_layer);
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), q4_0(), by_layer);
    watch.reads.store(10, Ordering::SeqCst);
    run(&job, options(), None, &Silent, &watch.cancel).expect_err("unplugged");
    watch.reads.store(usize::MAX, Ordering::SeqCst);
    // The second file was allocated, but has nothing yet.
    let outlet = Elsewhere::new(&job, largest(&job));
    let (_, shipped, _) = ship(&job, &outlet, &watch).expect("the rest");
    same(&job, &outlet, &shipped, &files);
}

#[test]
fn nobody_waits_for_a_line_that_is_cut() {
    let dir = tempfile::tempdir().expect("dir");
    let (job, watch) = job(dir.path(), q4_0(), by_layer);
    for room in [2, 1] {
        // The writer waits for the first file to go; then the reader for the source, which can never hold two files.
        watch.room.store(room, Ordering::SeqCst);
        let waits = AtomicBool::new(false);
        let on_disk = if room == 2 { largest(&job) } else { job.file_bytes() };
        let outlet = Elsewhere { wait: Some(&waits), ..Elsewhere::new(&job, on_disk) };
        outlet.good.store(0, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| ship(&job, &outlet, &watch));
            std::thread::sleep(Duration::from_secs(3));
            assert!(!running.is_finished());
            waits.store(true, Ordering::SeqCst);
            let error = running.join().expect("no panic").expect_err("the line is cut").to_string();
            assert_eq!(error, "the line is cut");
        });
    }

    watch.room.store(2, Ordering::SeqCst);
    let outlet = Elsewhere { wait: Some(&watch.cancel), ..Elsewhere::new(&job, largest(&job)) };
    outlet.good.store(0, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| ship(&job, &outlet, &watch));
        std::thread::sleep(Duration::from_secs(3));
        watch.cancel.store(true, Ordering::SeqCst);
        let error = running.join().expect("no panic").expect_err("interrupted");
        assert!(matches!(*error, Error::Interrupted { .. }), "{error}");
    });
}
