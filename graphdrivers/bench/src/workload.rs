//! What is measured: a table, and a function for each line.
//!
//! Each function prepares outside the clock, does inside the clock what the engine or a container does, and checks that
//! it happened (so many files seen, so many bytes read): a driver cannot win by not doing the work.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use skiff_archive::diff;
use skiff_graphdrivers::{Access, PrepareOptions, SnapshotRef};
use walkdir::WalkDir;

use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::seed;
use crate::size::Size;
use crate::subject::{Subject, Touched};

/// What the figures of a workload are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Seconds, sampled in each round.
    Seconds,
    /// Bytes on disk, measured once.
    Bytes,
}

/// Which side of storage a workload shows; the advice names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Many small files: unpacking, walking, reading, creating, deleting.
    SmallFiles,
    /// Big files: unpacking, copying up.
    BigFiles,
    /// Diff and commit.
    Changes,
    /// Container start.
    Start,
    /// Disk use.
    Disk,
}

/// A line of the table.
#[derive(Clone, Copy)]
pub struct Workload {
    /// Stable name, in the JSON.
    pub id: &'static str,
    /// What it shows.
    pub group: Group,
    /// Its weight in the score (`docs/benchmarks.md` says why).
    pub weight: f64,
    /// What its figures are.
    pub unit: Unit,
    title: fn(&Size) -> String,
    run: fn(&mut Subject) -> Result<f64>,
}

/// What is measured, in this order within a round.
pub const WORKLOADS: [Workload; 14] = {
    use Group::{BigFiles, Changes, Disk, SmallFiles, Start};
    [
        timed(
            "unpack-small",
            SmallFiles,
            3.0,
            |s| format!("unpack {} small files", grouped(s.small_files)),
            unpack_small,
        ),
        timed(
            "unpack-big",
            BigFiles,
            1.0,
            |s| format!("unpack a file of {}", bytes(s.big_file)),
            unpack_big,
        ),
        timed(
            "walk-first",
            SmallFiles,
            1.0,
            |_| "walk the image, first time".to_owned(),
            walk_first,
        ),
        timed(
            "walk-again",
            SmallFiles,
            1.0,
            |_| "walk the image, again".to_owned(),
            walk_again,
        ),
        timed(
            "read-first",
            SmallFiles,
            1.5,
            |_| "read its small files, first time".to_owned(),
            read_first,
        ),
        timed(
            "read-again",
            SmallFiles,
            1.5,
            |_| "read its small files, again".to_owned(),
            read_again,
        ),
        timed(
            "create",
            SmallFiles,
            2.0,
            |s| format!("create {} files", grouped(s.created_files)),
            create,
        ),
        timed("delete", SmallFiles, 1.0, |_| "delete them".to_owned(), delete),
        timed(
            "delete-image",
            SmallFiles,
            1.0,
            |s| format!("delete {} files of the image", deleted(s)),
            delete_image,
        ),
        timed(
            "copy-up",
            BigFiles,
            1.0,
            |s| format!("change a byte of {} (copy-up)", bytes(s.big_file)),
            copy_up,
        ),
        timed(
            "diff",
            Changes,
            0.5,
            |_| "diff after one change".to_owned(),
            diff_one,
        ),
        timed(
            "commit",
            Changes,
            1.0,
            |_| "commit one change".to_owned(),
            commit_one,
        ),
        timed(
            "start",
            Start,
            3.0,
            |_| "start, run, remove a container".to_owned(),
            start,
        ),
        Workload {
            id: "disk",
            group: Disk,
            weight: 3.0,
            unit: Unit::Bytes,
            title: |s| format!("disk: {} layers, {} containers", s.layers, s.containers),
            run: disk_use,
        },
    ]
};

const fn timed(
    id: &'static str,
    group: Group,
    weight: f64,
    title: fn(&Size) -> String,
    run: fn(&mut Subject) -> Result<f64>,
) -> Workload {
    Workload {
        id,
        group,
        weight,
        unit: Unit::Seconds,
        title,
        run,
    }
}

impl Workload {
    /// What people read, with the numbers of `size`.
    pub fn title(&self, size: &Size) -> String {
        (self.title)(size)
    }

    /// Takes one sample: seconds, or bytes. The subject has its layers; what a sample leaves is removed and synced
    /// outside the clock.
    ///
    /// # Errors
    /// `Stopped`; `NoSpace`; `Failed` with what did not work or was not as it should be.
    pub fn sample(&self, subject: &mut Subject) -> Result<f64> {
        let outcome = (self.run)(subject);
        let outcome = subject.checked(outcome)?;
        subject.tidy()?;
        Ok(outcome)
    }
}

impl Group {
    /// In a sentence: "4.1× as fast as … with small files".
    pub fn phrase(self) -> &'static str {
        match self {
            Self::SmallFiles => "with small files",
            Self::BigFiles => "with big files",
            Self::Changes => "at diff and commit",
            Self::Start => "at starting containers",
            Self::Disk => "in disk use",
        }
    }
}

/// `20,000`.
pub(crate) fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `256 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let text = |unit: u64, name: &str| {
        let value = bytes as f64 / unit as f64;
        if bytes.is_multiple_of(unit) || value >= 100.0 {
            format!("{value:.0} {name}")
        } else {
            format!("{value:.1} {name}")
        }
    };
    match bytes {
        n if n >= 1 << 30 => text(1 << 30, "GiB"),
        n if n >= 1 << 20 => text(1 << 20, "MiB"),
        _ => text(1 << 10, "KiB"),
    }
}

fn seconds<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begin = Instant::now();
    let value = work()?;
    Ok((begin.elapsed().as_secs_f64(), value))
}

fn expect(what: &str, found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let text = format!("{what}: {found} instead of {expected}");
    Err(Error::new(ErrorKind::Failed, text))
}

fn at<'a>(operation: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |error| Error::io(format!("{operation} {}", path.display()), error)
}

// ── unpacking ────────────────────────────────────────────────────────────────────────────────────────────────────────

fn unpack_small(subject: &mut Subject) -> Result<f64> {
    let (size, stop) = (subject.size.clone(), subject.stop.clone());
    unpack(subject, seed::small_files(&size, &stop))
}

fn unpack_big(subject: &mut Subject) -> Result<f64> {
    let (size, stop) = (subject.size.clone(), subject.stop.clone());
    unpack(subject, seed::big_file(&size, &stop))
}

/// Prepare, unpack, commit. What the page cache holds is not waited for, as a pull does not either.
fn unpack(subject: &mut Subject, stream: impl Read + Send) -> Result<f64> {
    let (time, layer) = seconds(|| subject.unpack(None, stream))?;
    subject.driver.remove(SnapshotRef::Layer(&layer))?;
    Ok(time)
}

// ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────

fn clean(touched: &Touched) -> bool {
    *touched == Touched::default()
}

fn walk_first(subject: &mut Subject) -> Result<f64> {
    subject.container(clean)?;
    subject.cool()?;
    walk(subject)
}

fn walk_again(subject: &mut Subject) -> Result<f64> {
    walk(subject)?;
    walk(subject)
}

/// readdir(3) of every directory and lstat(2) of every entry, like `find -size`.
fn walk(subject: &mut Subject) -> Result<f64> {
    let root = subject.container(clean)?;
    let (time, found) = seconds(|| {
        let mut entries = 0;
        for entry in WalkDir::new(&root).min_depth(1) {
            let entry = entry.map_err(|error| Error::io("walk", error))?;
            entry.metadata().map_err(|error| Error::io("stat", error))?;
            entries += 1;
        }
        Ok(entries)
    })?;
    expect(
        "entries of the image",
        found,
        seed::contents(&subject.size).entries,
    )?;
    Ok(time)
}

fn read_first(subject: &mut Subject) -> Result<f64> {
    subject.container(clean)?;
    subject.cool()?;
    read(subject)
}

fn read_again(subject: &mut Subject) -> Result<f64> {
    read(subject)?;
    read(subject)
}

/// Opens and reads every small file, like `grep -r`.
fn read(subject: &mut Subject) -> Result<f64> {
    let root = subject.container(clean)?.join(seed::MODULES);
    let mut buffer = vec![0; 128 << 10];
    let (time, (files, total)) = seconds(|| {
        let (mut files, mut total) = (0, 0);
        for entry in WalkDir::new(&root) {
            let entry = entry.map_err(|error| Error::io("walk", error))?;
            if !entry.file_type().is_file() {
                continue;
            }
            files += 1;
            let mut file = File::open(entry.path()).map_err(at("open", entry.path()))?;
            loop {
                match file.read(&mut buffer).map_err(at("read", entry.path()))? {
                    0 => break,
                    n => total += n as u64,
                }
            }
        }
        Ok((files, total))
    })?;
    let contents = seed::contents(&subject.size);
    expect("small files of the image", files, contents.small_files)?;
    expect("bytes of its small files", total, contents.small_bytes)?;
    Ok(time)
}

// ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const CREATED: &str = "created";
const CREATED_PER_DIRECTORY: u32 = 20;

fn create(subject: &mut Subject) -> Result<f64> {
    let root = subject.container(|touched| !touched.created)?;
    subject.touch(|touched| touched.created = true);
    let (time, ()) = seconds(|| create_files(&root, subject.size.created_files))?;
    Ok(time)
}

fn create_files(root: &Path, files: u32) -> Result<()> {
    let data = [b'x'; 2048];
    let mut directory = root.join(CREATED);
    fs::create_dir(&directory).map_err(at("mkdir", &directory))?;
    for n in 0..files {
        if n.is_multiple_of(CREATED_PER_DIRECTORY) {
            directory = root.join(format!("{CREATED}/{}", n / CREATED_PER_DIRECTORY));
            fs::create_dir(&directory).map_err(at("mkdir", &directory))?;
        }
        let path = directory.join(format!("file-{n}"));
        let mut file = File::create_new(&path).map_err(at("create", &path))?;
        file.write_all(&data).map_err(at("write", &path))?;
    }
    Ok(())
}

fn delete(subject: &mut Subject) -> Result<f64> {
    // Within a round these are the files of the row before.
    let had = subject.touched().created;
    let root = subject.container(|_| true)?;
    if !had {
        create_files(&root, subject.size.created_files)?;
    }
    disk::sync(subject.place())?;
    let path = root.join(CREATED);
    let (time, ()) = seconds(|| fs::remove_dir_all(&path).map_err(at("remove", &path)))?;
    // The directory is gone, but in an overlay not without trace.
    subject.touch(|touched| touched.created = false);
    subject.touch(|touched| touched.changed = true);
    Ok(time)
}

fn deleted(size: &Size) -> String {
    let packages = seed::packages(size, size.created_files).len();
    grouped(u32::try_from(packages).unwrap_or(0) * seed::FILES_PER_PACKAGE)
}

/// Packages of the image: in an overlay each leaves a whiteout.
fn delete_image(subject: &mut Subject) -> Result<f64> {
    let root = subject.container(|touched| !touched.deleted)?;
    subject.touch(|touched| touched.deleted = true);
    let packages = seed::packages(&subject.size, subject.size.created_files);
    let (time, ()) = seconds(|| {
        for package in &packages {
            let path = root.join(package);
            fs::remove_dir_all(&path).map_err(at("remove", &path))?;
        }
        Ok(())
    })?;
    for package in &packages {
        expect(
            "packages left after their removal",
            u64::from(root.join(package).exists()),
            0,
        )?;
    }
    Ok(time)
}

/// One byte at the end of the big file; an overlay copies all of it first.
fn copy_up(subject: &mut Subject) -> Result<f64> {
    let path = subject.container(|touched| !touched.copied_up)?.join(seed::BIG);
    subject.touch(|touched| touched.copied_up = true);
    let (time, ()) = seconds(|| {
        let mut file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(at("open", &path))?;
        file.write_all(b"x").map_err(at("write", &path))
    })?;
    let length = path.metadata().map_err(at("stat", &path))?.len();
    expect("bytes of the changed file", length, subject.size.big_file + 1)?;
    Ok(time)
}

// ── diff and commit ──────────────────────────────────────────────────────────────────────────────────────────────────

/// A container in which nothing but one small file was changed.
fn one_change(subject: &mut Subject) -> Result<()> {
    let only_changed = Touched {
        changed: true,
        ..Touched::default()
    };
    // A container that `delete` left counts as changed, too: empty directories do not weigh.
    let root = subject.container(|touched| *touched == only_changed || clean(touched))?;
    let path = root.join(seed::some_module());
    fs::write(&path, b"changed").map_err(at("write", &path))?;
    subject.touch(|touched| touched.changed = true);
    disk::sync(subject.place())
}

fn diff_one(subject: &mut Subject) -> Result<f64> {
    one_change(subject)?;
    let key = subject.container_key()?;
    let (time, diffed) = seconds(|| {
        let source = subject.driver.diff_source(SnapshotRef::Active(&key))?;
        Ok(diff(&source.tree(), io::sink())?)
    })?;
    // The file and its directories; overlays also show directories that became empty again.
    expect("changes found", u64::from((1..20).contains(&diffed.entries)), 1)?;
    Ok(time)
}

/// The change as a tar stream, and that as a new layer on top of the image.
fn commit_one(subject: &mut Subject) -> Result<f64> {
    one_change(subject)?;
    let key = subject.container_key()?;
    let top = subject.top()?;
    let (time, layer) = seconds(|| {
        let source = subject.driver.diff_source(SnapshotRef::Active(&key))?;
        let mut stream = Vec::new();
        diff(&source.tree(), &mut stream)?;
        subject.unpack(Some(&top), &stream[..])
    })?;
    subject.driver.remove(SnapshotRef::Layer(&layer))?;
    Ok(time)
}

// ── containers ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// What storage does for `docker run --rm`: a snapshot, its mount, a program out of it, and both away again. The mean
/// of several, because one is a matter of milliseconds.
fn start(subject: &mut Subject) -> Result<f64> {
    if seed::program().is_none() {
        let text = "no program was written for this kind of processor yet";
        return Err(Error::new(ErrorKind::Failed, text));
    }
    let top = subject.top()?;
    let starts = subject.size.starts;
    let mut keys = (0..starts)
        .map(|_| subject.key("start"))
        .collect::<Result<Vec<_>>>()?;
    let (time, ()) = seconds(|| {
        for key in keys.drain(..) {
            subject
                .driver
                .prepare(&key, Some(&top), &PrepareOptions::default())?;
            let (target, _) = subject.mount(&key, Access::Volatile)?;
            let ran = run(&target.join(seed::PROGRAM));
            subject.unmount_and_remove(&key, &target)?;
            ran?;
            subject.checked(Ok(()))?;
        }
        Ok(())
    })?;
    Ok(time / f64::from(starts))
}

fn run(program: &Path) -> Result<()> {
    let status = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(at("execute", program))?;
    expect("a container's program failed", u64::from(!status.success()), 0)
}

/// Bytes that the image's layers and some containers take, each with a changed and a new file.
fn disk_use(subject: &mut Subject) -> Result<f64> {
    subject.drop_container()?;
    subject.tidy()?;
    let before = disk::free(subject.place())?.bytes;
    let top = subject.top()?;
    let mut keys = Vec::new();
    for _ in 0..subject.size.containers {
        subject.checked(Ok(()))?;
        let key = subject.key("disk")?;
        subject
            .driver
            .prepare(&key, Some(&top), &PrepareOptions::default())?;
        let (target, mounts) = subject.mount(&key, Access::ReadWrite)?;
        for name in [&seed::some_module()[..], "new"] {
            let path = target.join(name);
            fs::write(&path, [b'x'; 4096]).map_err(at("write", &path))?;
        }
        drop(mounts);
        subject.unmount(&target)?;
        keys.push(key);
    }
    disk::sync(subject.place())?;
    let blocks = disk::blocks(&subject.root())?;
    let shares = disk::file_system(subject.place()).is_some_and(|fs| fs.shares_blocks());
    let taken = match subject.layers_took.filter(|_| shares) {
        // What is no longer free says it there; others may write meanwhile, but the sum of the blocks is a bound.
        Some(layers) => (layers + before.saturating_sub(disk::free(subject.place())?.bytes)).min(blocks),
        None => blocks,
    };
    for key in &keys {
        subject.driver.remove(SnapshotRef::Active(key))?;
    }
    Ok(taken as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_weights_positive() {
        let mut ids: Vec<_> = WORKLOADS.iter().map(|workload| workload.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), WORKLOADS.len());
        assert!(WORKLOADS.iter().all(|workload| workload.weight > 0.0));
        let titles: Vec<_> = WORKLOADS.iter().map(|w| w.title(&Size::large())).collect();
        assert!(titles.iter().all(|title| title.len() <= 34), "{titles:?}");
    }

    #[test]
    fn numbers_as_people_write_them() {
        assert_eq!(
            [0, 999, 1000, 98_304, 1_234_567].map(grouped),
            ["0", "999", "1,000", "98,304", "1,234,567"]
        );
        assert_eq!(
            [256 << 20, 1 << 30, 1536 << 20, 5000].map(bytes),
            ["256 MiB", "1 GiB", "1.5 GiB", "4.9 KiB"]
        );
    }
}
