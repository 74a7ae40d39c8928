//! Bytes: memory maps, holes, great offsets, a full disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::SeekFrom as At;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::{Fixture, python};
use crate::mounts::{Layers, Scratch};

/// A shared writable map changes the file: seen by read(2), by the layer's file after msync, and after a new mount.
pub(crate) fn shared_maps_are_written_back() {
    let mut f =
        Fixture::new(|layers| fs::write(layers.bottom.join("lower"), vec![b'l'; 3 * 4096 + 100]).unwrap());
    fs::write(f.at("new"), vec![b'n'; 3 * 4096 + 100]).unwrap();
    for name in ["lower", "new"] {
        python(
            "import mmap, os, sys\n\
             fd = os.open(sys.argv[1], os.O_RDWR)\n\
             m = mmap.mmap(fd, 0)\n\
             m[10:16] = b'mapped'\n\
             m[2 * 4096 - 2:2 * 4096 + 2] = b'page'\n\
             assert os.pread(fd, 6, 10) == b'mapped', 'read(2) does not see the map'\n\
             os.pwrite(fd, b'write', 8192 + 50)\n\
             assert m[8192 + 50:8192 + 55] == b'write', 'the map does not see write(2)'\n\
             m.flush()\n\
             os.fsync(fd)\n\
             below = os.open(sys.argv[2], os.O_RDONLY)\n\
             assert os.pread(below, 6, 10) == b'mapped', 'msync did not reach the layer'\n\
             m[0:4] = b'late'\n",
            &[&f.at(name), &f.layers.upper.join(name)],
        );
        f.remount();
        let bytes = fs::read(f.at(name)).unwrap();
        assert_eq!(bytes.len(), 3 * 4096 + 100);
        for (at, text) in [
            (0, &b"late"[..]),
            (10, b"mapped"),
            (8190, b"page"),
            (8192 + 50, b"write"),
        ] {
            assert_eq!(&bytes[at..at + text.len()], text, "{name} at {at}");
        }
    }
    assert!(
        fs::read(f.layers.bottom.join("lower"))
            .unwrap()
            .iter()
            .all(|byte| *byte == b'l')
    );
}

/// A private map and a program run from the mount read the same bytes; a program that runs cannot be written.
pub(crate) fn programs_run_from_the_mount() {
    let f = Fixture::new(|layers| {
        let target = layers.bottom.join("sleep");
        fs::copy("/bin/sleep", target).unwrap();
    });
    let mut running = std::process::Command::new(f.at("sleep"))
        .arg("1000")
        .spawn()
        .unwrap();
    // spawn returns after execve.
    let written = OpenOptions::new().write(true).open(f.at("sleep"));
    let busy = written.map(|_| ()).map_err(|error| error.raw_os_error());
    running.kill().unwrap();
    running.wait().unwrap();
    // Linux 6.11 to 6.13 had no such check.
    assert!(busy == Err(Some(Errno::TXTBSY.raw_os_error())) || busy.is_ok());
    assert!(
        std::process::Command::new(f.at("sleep"))
            .arg("0")
            .status()
            .unwrap()
            .success()
    );
}

/// A file with holes keeps them when it is copied up, and its data where it was.
pub(crate) fn holes_survive_copy_up() {
    const SIZE: u64 = 1 << 30;
    let data = [(0, "begin"), (SIZE / 2 + 5000, "middle"), (SIZE - 3, "end")];
    let f = Fixture::new(|layers| {
        let file = File::create(layers.bottom.join("sparse")).unwrap();
        file.set_len(SIZE).unwrap();
        for (at, text) in data {
            file.write_all_at(text.as_bytes(), at).unwrap();
        }
    });
    let below = fs::metadata(f.layers.bottom.join("sparse")).unwrap().blocks();
    assert_eq!(
        fs::metadata(f.at("sparse")).unwrap().blocks(),
        below,
        "the mount says how much is allocated"
    );
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(f.at("sparse"))
        .unwrap();
    file.write_all_at(b"!", 5).unwrap();
    file.sync_all().unwrap();
    let copy = fs::metadata(f.layers.upper.join("sparse")).unwrap();
    assert_eq!(copy.len(), SIZE);
    assert!(
        copy.blocks() <= below + 64,
        "the copy takes {} blocks, the original {below}",
        copy.blocks()
    );
    for (at, text) in data {
        let mut bytes = vec![0; text.len()];
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(bytes, text.as_bytes(), "at {at}");
    }
    let hole = rustix::fs::seek(&file, At::Hole(0)).unwrap();
    assert!(hole < SIZE / 2, "the first hole begins at {hole}");
    let next = rustix::fs::seek(&file, At::Data(hole)).unwrap();
    assert!(
        next > SIZE / 4 && next <= SIZE / 2 + 5000,
        "the data after it at {next}"
    );
    let last = rustix::fs::seek(&file, At::Hole(i64::MAX.cast_unsigned() / 2));
    assert_eq!(last, Err(Errno::NXIO));
}

/// Offsets beyond 4 GiB.
pub(crate) fn files_may_be_larger_than_four_gibibytes() {
    const FAR: u64 = 6 << 30;
    let f = Fixture::new(|layers| {
        let file = File::create(layers.bottom.join("lower")).unwrap();
        file.write_all_at(b"far", FAR).unwrap();
    });
    for name in ["lower", "new"] {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(f.at(name))
            .unwrap();
        file.seek(SeekFrom::Start(FAR + 3)).unwrap();
        file.write_all(b"ther").unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), FAR + 7, "{name}");
        let mut bytes = [0; 7];
        file.read_exact_at(&mut bytes, FAR).unwrap();
        assert_eq!(
            &bytes,
            if name == "lower" {
                b"farther"
            } else {
                b"\0\0\0ther"
            },
            "{name}"
        );
        file.set_len(FAR + 1).unwrap();
        assert_eq!(
            fs::metadata(f.layers.upper.join(name)).unwrap().len(),
            FAR + 1,
            "{name}"
        );
        assert!(
            fs::metadata(f.layers.upper.join(name)).unwrap().blocks() < 4096,
            "{name} is sparse"
        );
    }
}

/// fallocate(2): space reserved, a hole punched, with sizes as on the file system below.
pub(crate) fn space_can_be_reserved_and_holes_punched() {
    use rustix::fs::{FallocateFlags, fallocate};
    let f = Fixture::with_file(&"x".repeat(65536));
    let file = OpenOptions::new().read(true).write(true).open(f.at("f")).unwrap();
    fallocate(&file, FallocateFlags::empty(), 65536, 65536).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 131_072);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 131_072, 65536).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 131_072);
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        4096,
        8192,
    )
    .unwrap();
    let mut bytes = vec![1; 65536];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[4096..12288].iter().all(|byte| *byte == 0));
    assert!(
        bytes[..4096]
            .iter()
            .chain(&bytes[12288..])
            .all(|byte| *byte == b'x')
    );
    let zeroed = fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 4096);
    if zeroed.is_ok() {
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..4096].iter().all(|byte| *byte == 0));
    }
}

/// What was written and closed, renamed or truncated is on disk after an ordinary unmount.
pub(crate) fn an_unmount_loses_nothing() {
    let mut f = Fixture::with_file(&"lower".repeat(100_000));
    let text = "0123456789".repeat(200_000);
    fs::write(f.at("big"), &text).unwrap();
    let appended = OpenOptions::new().append(true).open(f.at("f")).unwrap();
    (&appended).write_all(b"end").unwrap();
    drop(appended);
    fs::write(f.at("draft"), "draft").unwrap();
    fs::rename(f.at("draft"), f.at("final")).unwrap();
    OpenOptions::new()
        .write(true)
        .open(f.at("big"))
        .unwrap()
        .set_len(1_000_003)
        .unwrap();
    f.unmount();
    let upper = &f.layers.upper;
    assert_eq!(fs::read_to_string(upper.join("big")).unwrap(), text[..1_000_003]);
    assert_eq!(fs::read_to_string(upper.join("final")).unwrap(), "draft");
    assert_eq!(
        fs::read_to_string(upper.join("f")).unwrap(),
        "lower".repeat(100_000) + "end"
    );
}

/// A full disk is ENOSPC for the writer and nothing worse: acknowledged bytes stay, space that was freed can be used.
///
/// On an ext4 of its own as root, on a tmpfs inside a user namespace, where no block device may be mounted.
pub(crate) fn a_full_disk_is_said_and_survived() {
    let scratch = Scratch::new();
    let disk = scratch.path().join("disk");
    fs::create_dir(&disk).unwrap();
    if crate::userns::inside() {
        mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), Some(c"size=12m")).unwrap();
    } else {
        small_ext4(&scratch.path().join("image"), &disk);
    }
    // Lower files lie elsewhere: the copy-up is what does not fit.
    let elsewhere = scratch.layers("elsewhere");
    let layers = Layers {
        bottom: elsewhere.bottom,
        top: elsewhere.top,
        ..Layers::new(&disk.join("o"))
    };
    fs::write(layers.bottom.join("large"), vec![b'l'; 32 << 20]).unwrap();
    fs::write(layers.bottom.join("small"), "small").unwrap();
    fs::create_dir(layers.bottom.join("d")).unwrap();
    let mount = layers.ours();

    fs::write(mount.join("kept"), "kept").unwrap();
    File::open(mount.join("kept")).unwrap().sync_all().unwrap();

    let too_large = OpenOptions::new()
        .append(true)
        .open(mount.join("large"))
        .and_then(|mut file| {
            file.write_all(b"!")?;
            file.sync_all()
        });
    assert_eq!(
        too_large.unwrap_err().raw_os_error(),
        Some(Errno::NOSPC.raw_os_error()),
        "copy-up"
    );
    assert_eq!(
        fs::metadata(mount.join("large")).unwrap().len(),
        32 << 20,
        "the lower file is as before"
    );
    assert!(!layers.upper.join("large").exists(), "no half copy is left");

    let mut file = File::create(mount.join("filler")).unwrap();
    let chunk = vec![b'f'; 1 << 20];
    let full = (0..64).find_map(|_| file.write_all(&chunk).and_then(|()| file.sync_data()).err());
    let Some(error) = full else {
        panic!("64 MiB fit on a disk of 12");
    };
    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "write");
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "kept");
    drop(file);
    fs::remove_file(mount.join("filler")).unwrap();

    fs::write(mount.join("small"), "copied up").unwrap();
    fs::write(mount.join("d/new"), "new").unwrap();
    File::open(mount.join("d/new")).unwrap().sync_all().unwrap();
    mount.unmount();
    let left: Vec<_> = match fs::read_dir(layers.work.join("work")) {
        Ok(entries) => entries.map(|entry| entry.unwrap().file_name()).collect(),
        // Another program under test may have other directories.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("read the work directory: {error}"),
    };
    assert!(left.is_empty(), "left in the work directory: {left:?}");
    let mount = layers.kernel();
    assert_eq!(fs::read_to_string(mount.join("kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "copied up");
    assert_eq!(fs::read_to_string(mount.join("d/new")).unwrap(), "new");
    mount.unmount();
}

/// What is copied up only for its attributes or its name nobody syncs; if it lay in memory for half a minute, a power
/// failure would leave a name without contents.
pub(crate) fn copies_that_nobody_writes_do_not_wait_in_memory() {
    if crate::userns::inside() {
        println!("left to the run as root: no block device may be mounted here");
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.path().join("disk");
    fs::create_dir(&disk).unwrap();
    small_ext4(&scratch.path().join("image"), &disk);
    let layers = Layers::new(&disk.join("o"));
    for name in ["changed", "moved", "linked", "marked"] {
        fs::write(layers.bottom.join(name), vec![b'x'; 64 << 10]).unwrap();
    }
    let mount = layers.ours();
    fs::set_permissions(mount.join("changed"), PermissionsExt::from_mode(0o600)).unwrap();
    fs::rename(mount.join("moved"), mount.join("there")).unwrap();
    fs::hard_link(mount.join("linked"), mount.join("again")).unwrap();
    xattr::set(mount.join("marked"), "user.note", b"x").unwrap();
    for name in ["changed", "there", "again", "marked"] {
        let output = std::process::Command::new("filefrag")
            .arg("-v")
            .arg(layers.upper.join(name))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("extent"), "{text}");
        assert!(
            !text.contains("delalloc"),
            "{name} has no place on the disk:\n{text}"
        );
    }
    mount.unmount();
}

fn small_ext4(image: &Path, at: &Path) {
    File::create(image).unwrap().set_len(16 << 20).unwrap();
    for (program, arguments) in [("mkfs.ext4", ["-q", "-m0"]), ("mount", ["-o", "loop"])] {
        let mut command = std::process::Command::new(program);
        command.args(arguments).arg(image);
        if program == "mount" {
            command.arg(at);
        }
        let status = command.status().unwrap();
        assert!(status.success(), "{program}: {status}");
    }
}
