//! The serving process: how it starts, how it ends, and what is left when it is killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::Fixture;
use crate::mounts::{Layers, Mounted, Scratch, Table, program, serving_itself, wait};

fn code<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// After `kill -9` every operation fails at once with ENOTCONN, also on files that are open; nothing hangs, umount
/// works, the synced bytes are on disk and the directories can be mounted again.
pub(crate) fn a_killed_server_leaves_errors_not_hangs() {
    let mut f = Fixture::with_file("text");
    let mut open = File::create(f.at("open")).unwrap();
    open.write_all(b"synced").unwrap();
    open.sync_all().unwrap();
    let dead = Some(Errno::NOTCONN.raw_os_error());
    f.mount.as_mut().unwrap().kill_server();

    assert_eq!(code(fs::metadata(f.at("f"))), dead, "stat");
    assert_eq!(code(fs::read(f.at("f"))), dead, "open");
    assert_eq!(code(fs::write(f.at("x"), "")), dead, "create");
    assert_eq!(code(fs::read_dir(f.mount().path())), dead, "opendir");
    assert_eq!(code(fs::create_dir(f.at("y"))), dead, "mkdir");
    let late = open.write_all(b"late").and_then(|()| open.sync_all());
    assert_eq!(code(late), dead, "write and fsync of an open file");
    drop(open);
    let mount = f.mount.take().unwrap();
    unmount(mount.path(), UnmountFlags::empty()).unwrap();
    drop(mount);
    assert_eq!(fs::read(f.layers.upper.join("open")).unwrap(), b"synced");
    let again = f.layers.ours();
    assert_eq!(fs::read(again.join("f")).unwrap(), b"text");
    assert_eq!(fs::read(again.join("open")).unwrap(), b"synced");
    again.unmount();
}

/// A process that waits for an answer of its own threads ends with them: nothing is left that no signal ends.
pub(crate) fn who_serves_itself_can_be_killed() {
    let scratch = Scratch::new();
    for round in 0..10 {
        let layers = scratch.layers(&format!("{round}"));
        let mut child = serving_itself(&layers);
        child.kill().unwrap();
        wait(&mut child, "after SIGKILL");
        unmount(&layers.merged, UnmountFlags::empty()).unwrap();
    }
}

/// Requests that wait in the server when it is killed end with an error too.
pub(crate) fn a_kill_under_load_ends_every_request() {
    const THREADS: usize = 4;
    let mut f = Fixture::new(|layers| {
        for n in 0..200 {
            fs::write(layers.bottom.join(format!("{n}")), "text").unwrap();
        }
    });
    let root = f.mount().path().to_owned();
    let (started, running) = std::sync::mpsc::channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            let (root, started) = (root.clone(), started.clone());
            std::thread::spawn(move || {
                for round in 0.. {
                    let path = root.join(format!("{thread}-{}", round % 50));
                    let result = fs::write(&path, "text")
                        .and_then(|()| fs::remove_file(&path))
                        .and_then(|()| fs::read_dir(&root)?.try_for_each(|entry| entry.map(drop)));
                    if round == 5 {
                        started.send(()).unwrap();
                    }
                    if let Err(error) = result {
                        return error.raw_os_error();
                    }
                }
                None
            })
        })
        .collect();
    (0..THREADS).for_each(|_| running.recv().unwrap());
    f.mount.as_mut().unwrap().kill_server();
    for thread in threads {
        // A request in flight is ECONNABORTED, one after it ENOTCONN.
        let error = thread.join().unwrap();
        let expected = [Errno::NOTCONN, Errno::CONNABORTED].map(|errno| Some(errno.raw_os_error()));
        assert!(expected.contains(&error), "{error:?}");
    }
    let mount = f.mount.take().unwrap();
    unmount(mount.path(), UnmountFlags::empty()).unwrap();
}

/// A server that ends late does not tear down a newer mount on the same directory.
pub(crate) fn a_late_end_spares_the_next_mount() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.layers("first"), scratch.layers("second"));
    fs::write(first.bottom.join("f"), "first").unwrap();
    fs::write(second.bottom.join("f"), "second").unwrap();
    let second = Layers {
        merged: first.merged.clone(),
        ..second
    };
    let old = first.ours();
    let mut held = File::open(old.join("f")).unwrap();
    unmount(old.path(), UnmountFlags::DETACH).unwrap();
    let mut server = old.leave();
    let new = second.ours();
    assert_eq!(fs::read_to_string(new.join("f")).unwrap(), "second");
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(
        text, "first",
        "the detached mount is served while somebody uses it"
    );
    drop(held);
    let status = wait(&mut server, "after its last file was closed");
    assert!(status.success(), "{status}");
    assert_eq!(Table::open().mounts_on(new.path()), 1, "the new mount is there");
    assert_eq!(fs::read_to_string(new.join("f")).unwrap(), "second");
    new.unmount();
}

/// What cannot be mounted is said on standard error, with a status other than 0 and no mount left.
pub(crate) fn a_refusal_is_said_and_leaves_no_mount() {
    let scratch = Scratch::new();
    let layers = scratch.layers("o");
    for options in [
        format!(
            "lowerdir={}/missing,upperdir={},workdir={}",
            layers.top.display(),
            layers.upper.display(),
            layers.work.display()
        ),
        format!(
            "upperdir={},workdir={}",
            layers.upper.display(),
            layers.work.display()
        ),
        format!(
            "lowerdir={},upperdir={}",
            layers.top.display(),
            layers.upper.display()
        ),
        format!(
            "lowerdir={},upperdir={}/missing,workdir={}",
            layers.top.display(),
            layers.upper.display(),
            layers.work.display()
        ),
    ] {
        let output = program(&[OsStr::new("-o"), options.as_ref(), layers.merged.as_os_str()])
            .output()
            .unwrap();
        assert!(!output.status.success(), "-o {options}");
        assert!(!output.stderr.is_empty(), "-o {options}: no message");
        assert_eq!(Table::open().mounts_on(&layers.merged), 0, "-o {options}");
    }
}

/// Without an upper directory everything can be read and nothing changed.
pub(crate) fn without_an_upper_directory_it_is_read_only() {
    let scratch = Scratch::new();
    let layers = scratch.layers("o");
    fs::write(layers.bottom.join("f"), "bottom").unwrap();
    fs::write(layers.top.join("g"), "top").unwrap();
    let options = format!("lowerdir={}:{}", layers.top.display(), layers.bottom.display());
    let mount = Mounted::by_program(&options, &layers.merged);
    assert_eq!(fs::read_to_string(mount.join("f")).unwrap(), "bottom");
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 2);
    let readonly = Some(Errno::ROFS.raw_os_error());
    assert_eq!(code(fs::write(mount.join("f"), "")), readonly);
    assert_eq!(code(fs::write(mount.join("x"), "")), readonly);
    assert_eq!(code(fs::remove_file(mount.join("g"))), readonly);
    assert_eq!(code(fs::create_dir(mount.join("d"))), readonly);
    let time = File::open(mount.join("f"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH);
    assert_eq!(code(time), readonly);
    mount.unmount();
    assert_eq!(fs::read_to_string(layers.bottom.join("f")).unwrap(), "bottom");
}

/// As many layers as an image can have, more text than one page of mount options.
pub(crate) fn many_layers_are_stacked() {
    const LAYERS: usize = 128;
    let scratch = Scratch::new();
    let layers = scratch.layers("o");
    let name = |n: usize| {
        scratch.path().join(format!(
            "a-layer-with-a-name-as-long-as-those-of-real-engines-{n:03}"
        ))
    };
    for n in 0..LAYERS {
        fs::create_dir(name(n)).unwrap();
        fs::write(name(n).join("who"), n.to_string()).unwrap();
        fs::write(name(n).join(format!("own-{n}")), n.to_string()).unwrap();
        fs::create_dir(name(n).join("d")).unwrap();
        fs::write(name(n).join(format!("d/{n}")), "").unwrap();
    }
    let lower: Vec<_> = (0..LAYERS).map(|n| name(n).display().to_string()).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        layers.upper.display(),
        layers.work.display()
    );
    assert!(options.len() > 4096);
    let mount = Mounted::by_program(&options, &layers.merged);
    assert_eq!(fs::read_to_string(mount.join("who")).unwrap(), "0");
    for n in 0..LAYERS {
        assert_eq!(
            fs::read_to_string(mount.join(format!("own-{n}"))).unwrap(),
            n.to_string()
        );
    }
    assert_eq!(fs::read_dir(mount.join("d")).unwrap().count(), LAYERS);
    fs::write(mount.join("own-127"), "changed").unwrap();
    assert_eq!(fs::read_to_string(name(127).join("own-127")).unwrap(), "127");
    mount.unmount();
}

/// Directories with commas and colons in their names, escaped by a backslash as in the kernel's options.
pub(crate) fn odd_directories_can_be_named() {
    let scratch = Scratch::new();
    let odd = scratch.path().join("with, comma: colon and space");
    let layers = Layers::new(&odd);
    fs::write(layers.bottom.join("f"), "text").unwrap();
    let escape = |path: &std::path::Path| path.display().to_string().replace(':', "\\:").replace(',', "\\,");
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        escape(&layers.top),
        escape(&layers.bottom),
        escape(&layers.upper),
        escape(&layers.work)
    );
    // The mount point itself goes without escapes.
    let plain = scratch.path().join("merged");
    fs::create_dir(&plain).unwrap();
    let mount = Mounted::by_program(&options, &plain);
    assert_eq!(fs::read_to_string(mount.join("f")).unwrap(), "text");
    fs::write(mount.join("g"), "new").unwrap();
    mount.unmount();
    assert_eq!(fs::read_to_string(layers.upper.join("g")).unwrap(), "new");
}

/// fsync(2) means what it says: the bytes are in the layer when it returns, without any unmount.
pub(crate) fn synced_bytes_survive_a_kill() {
    let mut f = Fixture::with_file("lower");
    let bytes = vec![7; 3 << 20];
    let file = File::options().write(true).open(f.at("f")).unwrap();
    file.write_all_at(&bytes, 1).unwrap();
    file.sync_data().unwrap();
    f.mount.as_mut().unwrap().kill_server();
    let below = f.layers.upper.join("f");
    assert_eq!(fs::metadata(&below).unwrap().size(), 1 + bytes.len() as u64);
    assert_eq!(fs::read(&below).unwrap()[1..], bytes);
}
